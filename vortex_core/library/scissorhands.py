from vortex_core import ops, register, vFlow


@register("scissorhands")
class Scissorhands(vFlow):
    """Scissorhands (Liu et al., arXiv 2305.17118), page-relaxed: what received more than its share of attention will do
    so again. The original drops tokens for good and starts from the prompt's own attention; here pages are dropped,
    they stay in memory, counts fade, and the mean key decides between pages that have none.

    a(page) <- 0.95 a(page) + sum_h [mass_h(page) > 1 / pages], score = a + sum_h softmax_page(q_h . mean k / sqrt(D))
    """

    def create_cache(self, page):
        return {"mean": page.state(dim=page.head_dim), "often": page.state(carried=True, dtype="fp32")}

    def forward_cache(self, page):
        return {"mean": page.k.mean("token")}

    def forward_indexer(self, q, cache):
        cache["often"] = 0.95 * cache["often"] + (ops.mass() > 1 / ops.pages()).sum("head")
        estimate = (q.dot(cache["mean"], "dim") / ops.size("D").sqrt()).softmax("page").sum("head")
        return ops.topk(cache["often"] + estimate)
