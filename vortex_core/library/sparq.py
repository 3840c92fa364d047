from vortex_core import ops, register, vFlow


@register("sparq")
class SparQ(vFlow):
    """SparQ (Ribar et al., arXiv 2312.04985), page-relaxed: approximate attention from the 16 query
    channels of largest magnitude, at token resolution, summed per page. Like the original it keeps keys a
    second time; the blend with the mean value changes the output and cannot be written as a selection.

    score(page) = mean_h sum_t softmax_t(q~_h . k_t / sqrt(D |q~_h|_1 / |q_h|_1)), q~ = q on its top
    channels
    """

    def create_cache(self, page):
        return {"keys": page.state(row=page.size, dim=page.head_dim)}

    def forward_cache(self, page):
        return {"keys": page.k.rename(token="row")}

    def forward_indexer(self, q, cache):
        part = ops.where(q.abs().sum("head").largest(16, "dim"), q, 0.0)
        scale = (ops.size("D") * part.abs().sum("dim") / (q.abs().sum("dim") + 1e-6)).sqrt()
        logits = (part * cache["keys"]).sum("dim") / (scale + 1e-6)
        weight = (logits - logits.max("page", "row")).exp().sum("row")
        return ops.topk((weight / weight.sum("page")).mean("head"))
