from vortex_core import ops, register, vFlow


@register("tokenselect")
class TokenSelect(vFlow):
    """TokenSelect (arXiv 2411.02886), page-relaxed: heads vote by their attention over tokens, computed
    exactly from a second copy of the keys. Its cache of selections by the query's cosine is `tokenselect_cached`;
    `reuse_steps` reuses one for a fixed number of steps.

    score(page) = sum_h sum_t softmax_t(q_h . k_t / sqrt(D))
    """

    def create_cache(self, page):
        return {"keys": page.state(row=page.size, dim=page.head_dim)}

    def forward_cache(self, page):
        return {"keys": page.k.rename(token="row")}

    def forward_indexer(self, q, cache):
        logits = (q * cache["keys"]).sum("dim") / ops.size("D").sqrt()
        weight = (logits - logits.max("page", "row")).exp().sum("row")
        return ops.topk((weight / weight.sum("page")).sum("head"))
