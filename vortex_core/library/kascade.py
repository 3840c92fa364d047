from vortex_core import Knobs, ops, register, vFlow


@register("kascade")
class Kascade(vFlow):
    """Kascade (arXiv 2512.16391), page-relaxed: anchor layers choose, the three layers after each reuse the
    choice. The original scores tokens exactly in anchor layers, picks these by calibration and maps heads
    between layers; here pages are scored by their mean key and every fourth layer is an anchor.

    score(page) = mean_h softmax_page(q_h . mean_t k_t / sqrt(D)), reused over 4 layers
    """

    knobs = Knobs(reuse_layers=4)

    def create_cache(self, page):
        return {"centroid": page.state(dim=page.head_dim)}

    def forward_cache(self, page):
        return {"centroid": page.k.mean("token")}

    def forward_indexer(self, q, cache):
        logits = (q * cache["centroid"]).sum("dim") / ops.size("D").sqrt()
        return ops.topk(logits.softmax("page").mean("head"))
