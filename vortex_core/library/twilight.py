from vortex_core import Knobs, ops, register, vFlow


@register("twilight")
class Twilight(vFlow):
    """Twilight (Lin et al., arXiv 2502.02770), page-relaxed: estimate attention from 4-bit keys and take
    the fewest pages whose mass reaches p = 0.95. The original prunes tokens inside the candidates of
    another selector; here the candidates are all pages and the budget is the cap.

    score(page) = ln mean_h sum_t softmax_t(q_h . k4_t / sqrt(D))
    """

    knobs = Knobs(budget="max(256, length / 4)")

    def create_cache(self, page):
        return {"keys": page.state(row=page.size, dim=page.head_dim, dtype="int4")}

    def forward_cache(self, page):
        return {"keys": page.k.rename(token="row")}

    def forward_indexer(self, q, cache):
        logits = (q * cache["keys"]).sum("dim") / ops.size("D").sqrt()
        weight = (logits - logits.max("page", "row")).exp().sum("row")
        mass = (weight / weight.sum("page")).mean("head")
        return ops.topp((mass + 1e-9).log(), 0.95)
