from vortex_core import ops, register, vFlow


@register("slow_tokens_fast_rows")
class SlowTokensFastRows(vFlow):
    """Two resolutions by rotary frequency. Rotary pairs are (i, i + D/2), frequency falls with i: the last half of each
    half turns slowly. Slow channels: every token, int4. Fast channels: one mean a page, int8.

    logit(h, t) = (q_slow . k_slow_t + q_fast . mean_fast) / sqrt(D); score = mean_h softmax_page logsumexp_t
    Tune: 1.0 in [0.0, 1.5]
    """

    def create_cache(self, page):
        return {
            "slow": page.state(row=page.size, dim="D/2", dtype="int4"),
            "fast": page.state(dim="D/2", dtype="int8"),
        }

    def slow(self, x):
        return ops.concat([x.slice("dim", "D/4", "D/2"), x.slice("dim", "3*D/4", "D")], "dim")

    def fast(self, x):
        return ops.concat([x.slice("dim", 0, "D/4"), x.slice("dim", "D/2", "3*D/4")], "dim")

    def forward_cache(self, page):
        return {
            "slow": self.slow(page.k).rename(token="row"),
            "fast": self.fast(page.k.mean("token")),
        }

    def forward_indexer(self, q, cache):
        scaled = q * ops.size("D") ** -0.5
        fine = self.slow(scaled).dot(cache["slow"], "dim")
        base = self.fast(scaled).dot(cache["fast"], "dim")
        mass = fine.logsumexp("row") + 1.0 * base
        return ops.topk(mass.softmax("page").mean("head"))
