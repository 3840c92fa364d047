from vortex_core import ops, register, vFlow


@register("signed_spread_tokens")
class SignedSpreadTokens(vFlow):
    """k_t ~ m + c * sd_d * sign(k_td - m_d): mean in int8, one mean absolute deviation a channel in int4, one bit for each
    token's channel. Correlations between channels, which a variance forgets, live in the bits.

    score = mean_h softmax_page (q.m / sqrt(D) + logsumexp_t (q * dev).b_t / sqrt(D))
    Tune: 1.0 in [0.5, 1.6]
    """

    def create_cache(self, page):
        return {
            "mean": page.state(dim=page.head_dim, dtype="int8"),
            "dev": page.state(dim=page.head_dim, dtype="int4"),
            "side": page.state(row=page.size, dim=page.head_dim, dtype="bits"),
        }

    def forward_cache(self, page):
        mean = page.k.mean("token")
        away = page.k - mean
        return {"mean": mean, "dev": away.abs().mean("token"), "side": away.rename(token="row")}

    def forward_indexer(self, q, cache):
        scaled = q * ops.size("D") ** -0.5
        base = scaled.dot(cache["mean"], "dim")
        reach = 1.0 * scaled * cache["dev"]
        lift = reach.dot(cache["side"], "dim").logsumexp("row")
        return ops.topk((base + lift).softmax("page").mean("head"))
