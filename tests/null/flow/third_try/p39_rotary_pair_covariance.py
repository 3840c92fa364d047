from vortex_core import ops, register, vFlow


@register("rotary_pair_covariance")
class RotaryPairCovariance(vFlow):
    """Mean plus, for each rotary pair (i, i + D/2), its covariance: two variances and one cross term. The logit's variance
    inside the page is then a block-diagonal quadratic form in q, and the page is scored by an upper confidence bound.

    s^2 = sum_i q_a^2 V_aa + q_b^2 V_bb + 2 q_a q_b V_ab;  score = mean_h softmax_page (q.m / sqrt(D) + beta s)
    Tune: 1.2 in [0.3, 2.4]
    """

    def create_cache(self, page):
        return {
            "mean": page.state(dim=page.head_dim, dtype="int8"),
            "var": page.state(dim=page.head_dim, dtype="fp8_e4m3"),
            "cross": page.state(dim="D/2", dtype="fp8_e4m3"),
        }

    def forward_cache(self, page):
        mean = page.k.mean("token")
        away = page.k - mean
        left = away.slice("dim", 0, "D/2")
        right = away.slice("dim", "D/2", "D")
        return {
            "mean": mean,
            "var": away.square().mean("token"),
            "cross": (left * right).mean("token"),
        }

    def forward_indexer(self, q, cache):
        scaled = q * ops.size("D") ** -0.5
        both = 2.0 * scaled.slice("dim", 0, "D/2") * scaled.slice("dim", "D/2", "D")
        power = scaled.square().dot(cache["var"], "dim") + both.dot(cache["cross"], "dim")
        mu = scaled.dot(cache["mean"], "dim")
        score = mu + 1.2 * power.relu().sqrt()
        return ops.topk(score.softmax("page").mean("head"))
