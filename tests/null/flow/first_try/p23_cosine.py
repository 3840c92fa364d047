from vortex_core import ops, register, vFlow


@register("cosine")
class Cosine(vFlow):
    """Cosine similarity with unit keys averaged, norm kept apart."""

    def create_cache(self, page):
        return {
            "direction": page.state(dim=page.head_dim, dtype="int8"),
            "length": page.state(dtype="bf16"),
        }

    def forward_cache(self, page):
        unit = page.k / (page.k.norm("dim") + 1e-6)
        return {"direction": unit.mean("token"), "length": page.k.norm("dim").max("token")}

    def forward_indexer(self, q, cache):
        qn = q / q.norm("dim").clamp(min=1e-6)
        cos = (qn * cache["direction"]).sum("dim")
        return ops.topk((cos * cache["length"]).max("head"))
