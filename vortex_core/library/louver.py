from vortex_core import Knobs, ops, register, vFlow


@register("louver")
class Louver(vFlow):
    """Louver (arXiv 2605.06763), page-relaxed: every key with q . k / sqrt(D) at or above a threshold is
    attended, none is missed, because a page is left out only where an upper bound says so. The bound is
    Quest's, the budget all pages; the original prunes a hierarchy of bounds.

    score(page) = max_h sum_d max(q_hd kmax_d, q_hd kmin_d) / sqrt(D), at least 4
    """

    knobs = Knobs(budget="length")

    def create_cache(self, page):
        return {"kmax": page.state(dim=page.head_dim), "kmin": page.state(dim=page.head_dim)}

    def forward_cache(self, page):
        return {"kmax": page.k.max("token"), "kmin": page.k.min("token")}

    def forward_indexer(self, q, cache):
        bound = ops.maximum(q * cache["kmax"], q * cache["kmin"]).sum("dim")
        return ops.threshold(bound.max("head") / ops.size("D").sqrt(), 4.0)
