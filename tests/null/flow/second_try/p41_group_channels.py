from vortex_core import ops, register, vFlow


@register("channel_groups")
class ChannelGroups(vFlow):
    """Product-quantisation spirit: norms of eight channel groups bound the inner product by Cauchy-Schwarz."""

    def create_cache(self, page):
        return {"n": page.state(part=8, dtype="bf16"), "c": page.state(dim=page.head_dim, dtype="int4")}

    def forward_cache(self, page):
        c = page.k.mean("token").to("int4", "dim")
        rest = (page.k - c).split("dim", part=8)
        return {"c": c, "n": rest.norm("dim").max("token")}

    def forward_indexer(self, q, cache):
        slack = q.split("dim", part=8).norm("dim").dot(cache["n"], "part")
        return ops.topk((q.dot(cache["c"], "dim") + 0.4 * slack).max("head"))
