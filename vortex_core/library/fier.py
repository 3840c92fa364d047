from vortex_core import ops, register, vFlow


@register("fier")
class Fier(vFlow):
    """FIER (Wang et al., arXiv 2508.08256), page-relaxed: every key in one bit a channel, with a middle and a step that
    the tokens of a page share in each channel; a page counts by its share of the attention so estimated.

    score(page) = mean_h sum_t softmax_t(q_h . (mid + step b_t) / sqrt(D)),  b_t = sign(k_t - mid)
    """

    def create_cache(self, page):
        channel = page.state(dim=page.head_dim, dtype="fp8_e4m3")
        bits = page.state(row=page.size, dim=page.head_dim, dtype="bits")
        return {"mid": channel, "step": channel, "bits": bits}

    def forward_cache(self, page):
        mid = (page.k.max("token") + page.k.min("token")) / 2
        off = (page.k - mid).rename(token="row")
        return {"mid": mid, "step": off.abs().mean("row"), "bits": off}

    def forward_indexer(self, q, cache):
        logits = (q * cache["step"]).dot(cache["bits"], "dim") + q.dot(cache["mid"], "dim")
        logits = logits / ops.size("D").sqrt()
        weight = (logits - logits.max("page", "row")).exp().sum("row")
        return ops.topk((weight / weight.sum("page")).mean("head"))
