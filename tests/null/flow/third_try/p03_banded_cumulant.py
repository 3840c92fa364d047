from vortex_core import ops, register, vFlow


@register("banded_cumulant")
class BandedCumulant(vFlow):
    """Second-order cumulant expansion of a page's log mass with the variance pooled in rotary bands.

    log sum_t exp(q . k_t) ~ q . mu + 1/2 sum_d q_d^2 var_d,
    var_d replaced by its mean over a band of eight neighbouring rotary pairs' channels (pairs d, d + D/2).
    score(page) = mean_h softmax_pages(q_h . mu s + 0.35 s^2 sum_band |q_h,band|^2 var_band), s = 1 / sqrt(D)
    Tune: 0.35 in [0.05, 1.0]
    """

    def bands(self, x):
        return x.split("dim", half=2).split("dim", band=8)  # (half, band, dim)

    def create_cache(self, page):
        return {
            "mu": page.state(dim=page.head_dim, dtype="int4"),
            "spread": page.state(band=8, dtype="bf16"),
        }

    def forward_cache(self, page):
        return {
            "mu": page.k.mean("token"),
            "spread": self.bands(page.k.var("token")).mean("half", "dim"),
        }

    def forward_indexer(self, q, cache):
        scale = ops.size("D") ** -0.5
        first = q.dot(cache["mu"], "dim") * scale
        energy = self.bands(q.square()).sum("half", "dim")  # (head, band)
        second = energy.dot(cache["spread"], "band") * (scale * scale)
        return ops.topk((first + 0.35 * second).softmax("page").mean("head"))
