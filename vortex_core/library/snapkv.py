from vortex_core import ops, register, vFlow


@register("snapkv")
class SnapKV(vFlow):
    """SnapKV (Li et al., arXiv 2404.14469), page-relaxed: a short window of queries votes once, the votes
    are max-pooled over neighbours, and the set is kept from then on. The original's window is the end of
    the prompt, whose queries a flow does not see; here it is a page's first 16 decode steps, and mass is
    estimated from mean keys.

    votes(page) = sum over the window of sum_h softmax_page(q_h . mean_t k_t / sqrt(D)), score =
    maxpool_3(votes)
    """

    def create_cache(self, page):
        return {
            "centroid": page.state(dim=page.head_dim),
            "votes": page.state(carried=True, dtype="fp32"),
            "age": page.state(carried=True, dtype="fp32"),
        }

    def forward_cache(self, page):
        return {"centroid": page.k.mean("token")}

    def forward_indexer(self, q, cache):
        logits = (q * cache["centroid"]).sum("dim") / ops.size("D").sqrt()
        vote = ops.where(cache["age"] < 16, logits.softmax("page").sum("head"), 0.0)
        cache["votes"] = cache["votes"] + vote
        cache["age"] = cache["age"] + 1
        return ops.topk(cache["votes"].maxpool(3))
