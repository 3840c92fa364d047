import math

from vortex_core import Knobs, ops, register, vFlow


@register("token_int4")
class TokenInt4(vFlow):
    """Int4 copies of every key; the page's score is the log-sum-exp of its approximate logits.

    score(page) = max_h log sum_t exp(q_h . k4_t / sqrt(D))
    """

    knobs = Knobs(budget=512)

    def create_cache(self, page):
        return {"k4": page.state(row=page.size, dim=page.head_dim, dtype="int4")}

    def forward_cache(self, page):
        return {"k4": page.k.rename(token="row")}

    def forward_indexer(self, q, cache):
        logits = (q * cache["k4"]).sum("dim") / math.sqrt(ops.size("D"))
        peak = logits.max("row")
        lse = peak + (logits - peak).exp().sum("row").log()
        return ops.topk(lse.max("head"))
