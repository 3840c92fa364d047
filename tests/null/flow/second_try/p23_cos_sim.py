from vortex_core import ops, register, vFlow


@register("cosine_centroid")
class CosineCentroid(vFlow):
    """Directions and norms apart: mean direction of the keys in 4 bits and their largest norm."""

    def create_cache(self, page):
        return {"dir": page.state(dim=page.head_dim, dtype="int4"), "len": page.state(dtype="bf16")}

    def forward_cache(self, page):
        unit = page.k.normalize("dim")
        return {"dir": unit.mean("token"), "len": page.k.norm("dim").max("token")}

    def forward_indexer(self, q, cache):
        return ops.topk((q.dot(cache["dir"], "dim") * cache["len"]).max("head"))
