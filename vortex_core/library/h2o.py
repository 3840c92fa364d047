from vortex_core import ops, register, vFlow


@register("h2o")
class H2O(vFlow):
    """H2O (Zhang et al., arXiv 2306.14048), page-relaxed: keep the pages that have received the most
    attention so far. The original evicts single tokens for good and starts from the prompt's own attention;
    here pages are dropped, they stay in memory, and what a page received before it was first measured is
    estimated from its mean key.

    a(page) <- a(page) + sum_h mass_h(page), score = a; at first sum_h softmax_page(q_h . mean_t k_t /
    sqrt(D))
    """

    def create_cache(self, page):
        return {
            "centroid": page.state(dim=page.head_dim),
            "received": page.state(carried=True, dtype="fp32"),
            "seen": page.state(carried=True, dtype="fp32"),
        }

    def forward_cache(self, page):
        return {"centroid": page.k.mean("token")}

    def forward_indexer(self, q, cache):
        logits = (q * cache["centroid"]).sum("dim") / ops.size("D").sqrt()
        estimate = logits.softmax("page").sum("head")
        mass = ops.where(cache["seen"] > 0, ops.mass().sum("head"), estimate)
        cache["received"] = cache["received"] + mass
        cache["seen"] = ops.constant(1.0)
        return ops.topk(cache["received"])
