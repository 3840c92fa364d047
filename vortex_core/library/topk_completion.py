from vortex_core import ops, register, vFlow


@register("topk_completion")
class TopKCompletion(vFlow):
    """Top-k with linear-attention completion (arXiv 2604.05438), page-relaxed: what is not retrieved is estimated
    from a summary of fixed size and added before the softmax is normalised. The original retrieves tokens and
    has one feature map for all others; here pages are retrieved by Quest's bound, and each other one has its
    mean key and its mean value.

    score(page) = max_h sum_d max(q_hd kmax_d, q_hd kmin_d)
    """

    def create_cache(self, page):
        return {name: page.state(dim=page.head_dim) for name in ("kmax", "kmin", "mean", "value")}

    def forward_cache(self, page):
        k, v = page.k, page.v
        return {
            "kmax": k.max("token"),
            "kmin": k.min("token"),
            "mean": k.mean("token"),
            "value": v.mean("token"),
        }

    def forward_indexer(self, q, cache):
        bound = ops.maximum(q * cache["kmax"], q * cache["kmin"]).sum("dim")
        mass = ops.size("S").log() + (q * cache["mean"]).sum("dim") / ops.size("D").sqrt()
        return ops.topk(bound.max("head")).residual(mass, cache["value"])
