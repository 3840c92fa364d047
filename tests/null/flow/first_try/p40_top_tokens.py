from vortex_core import ops, register, vFlow


@register("top_tokens")
class TopTokens(vFlow):
    """Token scores from int8 keys; a page counts by its two best tokens.

    score(page) = max_h sum over the two largest of q . k / sqrt(D)
    """

    def create_cache(self, page):
        return {"k8": page.state(row=page.size, dim=page.head_dim, dtype="int8")}

    def forward_cache(self, page):
        return {"k8": page.k.rename(token="row")}

    def forward_indexer(self, q, cache):
        logits = (q * cache["k8"]).sum("dim") * ops.size("D") ** -0.5
        best = logits.largest(2, "row")
        top2 = ops.where(best, logits, 0.0).sum("row")
        return ops.topk(top2.max("head"))
