from vortex_core import ops, register, vFlow


@register("hisa")
class HISA(vFlow):
    """HISA (arXiv 2603.28458), page-relaxed: a coarse filter over blocks by their mean, then token scores inside the
    blocks that pass. The original's index heads are the model's own and its second stage chooses tokens; here
    attention logits stand for them, in 4 bits, and pages are chosen by their best token.

    score(page) = max_h,t q_h . k4_t, of four budgets of candidates by max_h q_h . mean_t k_t
    """

    def create_cache(self, page):
        keys = page.state(row=page.size, dim=page.head_dim, dtype="int4")
        return {"mean": page.state(dim=page.head_dim, dtype="int8"), "keys": keys}

    def forward_cache(self, page):
        return {"mean": page.k.mean("token"), "keys": page.k.rename(token="row")}

    def forward_indexer(self, q, cache):
        coarse = (q * cache["mean"]).sum("dim").max("head")
        fine = (q * cache["keys"]).sum("dim").max("row", "head")
        return ops.refine(coarse, fine, candidates=4)
