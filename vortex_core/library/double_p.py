from vortex_core import Knobs, ops, register, vFlow


@register("double_p")
class DoubleP(vFlow):
    """Double-P's first stage (arXiv 2602.05191), page-relaxed: the fewest clusters whose mass, estimated by
    their size and centroid, reaches p = 0.95. Clusters are pages here, all of one size; the refinement of
    tokens inside them, its second stage, is left out.

    score(page) = ln mean_h softmax_page(q_h . mean_t k_t / sqrt(D))
    """

    knobs = Knobs(budget="max(256, length / 4)")

    def create_cache(self, page):
        return {"centroid": page.state(dim=page.head_dim)}

    def forward_cache(self, page):
        return {"centroid": page.k.mean("token")}

    def forward_indexer(self, q, cache):
        logits = (q * cache["centroid"]).sum("dim") / ops.size("D").sqrt()
        return ops.topp((logits.softmax("page").mean("head") + 1e-9).log(), 0.95)
