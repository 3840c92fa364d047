from vortex_core import ops, register, vFlow


@register("subspace_max")
class SubspaceMax(vFlow):
    """Product form: for each of 8 channel groups the best sub-page row counts (a tighter upper bound)."""

    def create_cache(self, page):
        return {"c": page.state(row=4, dim=page.head_dim, dtype="int4")}

    def forward_cache(self, page):
        return {"c": page.k.split("token", row=4).mean("token")}

    def forward_indexer(self, q, cache):
        prod = (q * cache["c"]).split("dim", group=8).sum("dim")
        bound = prod.max("row").sum("group")
        return ops.topk(bound.max("head"))
