from vortex_core import Knobs, ops, register, vFlow


@register("shadowkv")
class ShadowKV(vFlow):
    """ShadowKV's selection (Sun et al., arXiv 2410.21465): chunks by their mean key, the landmark, and
    always the outlier chunks that a landmark describes badly. Its low-rank keys and value offloading change
    attention itself and cannot be written as a selection.

    score(page) = max_h softmax_page(q_h . c / sqrt(D)); outliers: smallest min_t cos(k_t, c), c = mean_t
    k_t
    """

    knobs = Knobs(page_size=8)

    def create_cache(self, page):
        return {"landmark": page.state(dim=page.head_dim), "fit": page.state(dtype="fp32")}

    def forward_cache(self, page):
        landmark = page.k.mean("token")
        cosine = (page.k * landmark).sum("dim") / (page.k.norm("dim") * landmark.norm("dim") + 1e-6)
        return {"landmark": landmark, "fit": cosine.min("token")}

    def forward_indexer(self, q, cache):
        logits = (q * cache["landmark"]).sum("dim") / ops.size("D").sqrt()
        best = ops.topk(logits.softmax("page").max("head"), fraction=0.8)
        return best | ops.topk(-cache["fit"], fraction=0.2)
