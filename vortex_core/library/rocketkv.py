from vortex_core import ops, register, vFlow


@register("rocketkv")
class RocketKV(vFlow):
    """RocketKV's second stage (Behnam et al., arXiv 2502.14051): Quest's bound on the 16 channels where the
    group's queries are largest. The first stage evicts most of the prompt for good, by SnapKV's rule: see
    snapkv.

    score(page) = sum_h sum_{d in top} max(q_hd kmax_d, q_hd kmin_d), top = largest sum_h |q_hd|
    """

    def create_cache(self, page):
        return {"kmax": page.state(dim=page.head_dim), "kmin": page.state(dim=page.head_dim)}

    def forward_cache(self, page):
        return {"kmax": page.k.max("token"), "kmin": page.k.min("token")}

    def forward_indexer(self, q, cache):
        part = ops.where(q.abs().sum("head").largest(16, "dim"), q, 0.0)
        bound = ops.maximum(part * cache["kmax"], part * cache["kmin"]).sum("dim")
        return ops.topk(bound.sum("head"))
