from vortex_core import ops, register, vFlow


@register("calibrated_top_p_pairs")
class CalibratedTopPPairs(vFlow):
    """Twilight-like top-p (arXiv 2502.02770) on pair means. A pair's mean hides half its difference; its energy is kept
    as one number per pair, and enters as the second cumulant. The score is a log probability, so that the softmax taken
    inside topp gives back the heads' mean probability.

    x_hr = q_h.c_r / sqrt(D) + beta |q_h|^2 e_r / D;  score = log mean_h softmax_page logsumexp_r x_hr
    Tune: 0.95 in [0.7, 0.99]; 0.5 in [0.0, 1.0]
    """

    def create_cache(self, page):
        return {
            "pair": page.state(row=8, dim=page.head_dim, dtype="int4"),
            "energy": page.state(row=8, dtype="fp16"),
        }

    def forward_cache(self, page):
        pairs = page.k.split("token", row=8)
        return {"pair": pairs.mean("token"), "energy": pairs.var("token").mean("dim")}

    def forward_indexer(self, q, cache):
        scaled = q * ops.size("D") ** -0.5
        logits = scaled.dot(cache["pair"], "dim") + 0.5 * scaled.square().sum("dim") * cache["energy"]
        share = logits.logsumexp("row").softmax("page").mean("head")
        return ops.topp((share + 1e-9).log(), 0.95)
