from vortex_core import ops, register, vFlow


@register("retroinfer")
class RetroInfer(vFlow):
    """RetroInfer (arXiv 2505.02922), page-relaxed: the clusters nearest to the query are attended exactly, the others
    by their centroid and their mean value. The original clusters keys within segments and leaves the farthest
    out; here every page is a cluster and every other page is estimated.

    score(page) = max_h q_h . mean_t k_t
    """

    def create_cache(self, page):
        return {"centroid": page.state(dim=page.head_dim), "value": page.state(dim=page.head_dim)}

    def forward_cache(self, page):
        return {"centroid": page.k.mean("token"), "value": page.v.mean("token")}

    def forward_indexer(self, q, cache):
        logit = (q * cache["centroid"]).sum("dim") / ops.size("D").sqrt()
        return ops.topk(logit.max("head")).residual(logit + ops.size("S").log(), cache["value"])
