from vortex_core import ops, register, vFlow


@register("tova")
class TOVA(vFlow):
    """TOVA (Oren et al., arXiv 2401.06104), page-relaxed: keep the pages that the previous token attended
    to most. A page that was dropped has received nothing and so stays out, as in the original, which drops
    one token per step; the first choice is estimated from mean keys, where the original has the prompt's
    attention.

    score(page) = mean_h mass_h(page) of the previous step; at first mean_h softmax_page(q_h . mean_t k_t /
    sqrt(D))
    """

    def create_cache(self, page):
        return {
            "centroid": page.state(dim=page.head_dim),
            "seen": page.state(carried=True, dtype="fp32"),
        }

    def forward_cache(self, page):
        return {"centroid": page.k.mean("token")}

    def forward_indexer(self, q, cache):
        logits = (q * cache["centroid"]).sum("dim") / ops.size("D").sqrt()
        estimate = logits.softmax("page").mean("head")
        score = ops.where(cache["seen"] > 0, ops.mass().mean("head"), estimate)
        cache["seen"] = ops.constant(1.0)
        return ops.topk(score)
