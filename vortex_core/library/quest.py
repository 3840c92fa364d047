from vortex_core import ops, register, vFlow


@register("quest")
class Quest(vFlow):
    """Quest (Tang et al., arXiv 2406.10774): bounds q . k over a page from above by its per-channel extrema.

    score(page) = max_h sum_d max(q_hd kmax_d, q_hd kmin_d)
    """

    def create_cache(self, page):
        return {"kmax": page.state(dim=page.head_dim), "kmin": page.state(dim=page.head_dim)}

    def forward_cache(self, page):
        return {"kmax": page.k.max("token"), "kmin": page.k.min("token")}

    def forward_indexer(self, q, cache):
        bound = ops.maximum(q * cache["kmax"], q * cache["kmin"]).sum("dim")
        return ops.topk(bound.max("head"))
