from vortex_core import ops, register, vFlow


@register("centered_block_topk")
class CenteredBlockTopK(vFlow):
    """Block top-k with the sequence mean subtracted (bundled with vortex_torch, arXiv 2606.06453). The
    shift is the same for every page, so it selects what block_topk selects and has the same IR hash; it is
    here to show that.

    score(page) = s_page - mean_page s, s = mean_h q_h . mean_t k_t
    """

    def create_cache(self, page):
        return {"centroid": page.state(dim=page.head_dim)}

    def forward_cache(self, page):
        return {"centroid": page.k.mean("token")}

    def forward_indexer(self, q, cache):
        score = (q.mean("head") * cache["centroid"]).sum("dim")
        return ops.topk(score - score.mean("page"))
