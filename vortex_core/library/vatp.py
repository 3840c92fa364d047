from vortex_core import ops, register, vFlow


@register("vatp")
class Vatp(vFlow):
    """Value-aware token pruning (Guo et al., arXiv 2406.12335), page-relaxed: attention received so far, times the mean
    L1 norm of the values. The original drops tokens for good and starts from the prompt's own attention; here the mean
    key stands for what was received before.

    a(page) <- a(page) + sum_h mass_h(page), score = (a + sum_h softmax_page(q_h . mean k / sqrt(D))) mean_t norm1(v_t)
    """

    def create_cache(self, page):
        carried = page.state(carried=True, dtype="fp32")
        return {"mean": page.state(dim=page.head_dim), "value": page.state(), "received": carried}

    def forward_cache(self, page):
        return {"mean": page.k.mean("token"), "value": page.v.abs().sum("dim").mean("token")}

    def forward_indexer(self, q, cache):
        cache["received"] = cache["received"] + ops.mass().sum("head")
        estimate = (q.dot(cache["mean"], "dim") / ops.size("D").sqrt()).softmax("page").sum("head")
        return ops.topk((cache["received"] + estimate) * cache["value"])
