from vortex_core import ops, register, vFlow


@register("twilight_quest")
class TwilightQuest(vFlow):
    """Twilight's hierarchy (arXiv 2502.02770) over Quest's candidates (arXiv 2406.10774), page-relaxed: Quest's bound
    chooses four times as many pages as are wanted, and 4-bit keys tell which of these hold the most attention. The
    original prunes tokens by their mass, top-p; here pages, by the budget.

    score(page) = max_h ln sum_t exp(q_h . k4_t / sqrt(D)), of candidates by max_h sum_d max(q_hd kmax_d, q_hd kmin_d)
    """

    def create_cache(self, page):
        bound = page.state(dim=page.head_dim, dtype="fp8_e4m3")
        return {
            "high": bound,
            "low": bound,
            "keys": page.state(row=page.size, dim=page.head_dim, dtype="int4"),
        }

    def forward_cache(self, page):
        return {"high": page.k.max("token"), "low": page.k.min("token"), "keys": page.k.rename(token="row")}

    def forward_indexer(self, q, cache):
        bound = ops.maximum(q * cache["high"], q * cache["low"]).sum("dim")
        logits = (q * cache["keys"]).sum("dim") / ops.size("D").sqrt()
        return ops.refine(bound.max("head"), logits.logsumexp("row").max("head"), candidates=4)
