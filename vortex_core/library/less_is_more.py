from vortex_core import Knobs, ops, register, vFlow


@register("less_is_more")
class LessIsMore(vFlow):
    """LessIsMore (arXiv 2508.07101), page-relaxed: all heads share one set, chosen from their pooled scores
    and used again by the layers after, and a fixed share of it is recent. The original scores tokens
    exactly in its selection layers; here pages are scored by their mean key, and 8 pages are recent.

    score(page) = mean over all heads of softmax_page(q_h . mean_t k_t / sqrt(D)), reused over 4 layers
    """

    knobs = Knobs(reuse_layers=4, keep_last=8)

    def create_cache(self, page):
        return {"centroid": page.state(dim=page.head_dim)}

    def forward_cache(self, page):
        return {"centroid": page.k.mean("token")}

    def forward_indexer(self, q, cache):
        logits = (q * cache["centroid"]).sum("dim") / ops.size("D").sqrt()
        return ops.topk(logits.softmax("page").mean("head"), share="mean")
