from vortex_core import ops, register, vFlow


@register("hull_support_points")
class HullSupportPoints(vFlow):
    """Eight pseudo-queries (random signs) attend inside the page to the centred keys, measured in standard deviations; each
    returns the key mixture it prefers. Together they sketch the hull; the mean covers the inside.

    c_j = sum_t softmax_t(tau w_j . (k_t - m) / sd_j) k_t;  score = mean_h softmax_page logsumexp(q.c_j, q.m)
    Tune: 2.0 in [0.5, 6.0]; 1.0 in [0.0, 3.0]
    """

    def create_cache(self, page):
        return {
            "mean": page.state(dim=page.head_dim, dtype="int8"),
            "support": page.state(row=8, dim=page.head_dim, dtype="int4"),
        }

    def forward_cache(self, page):
        mean = page.k.mean("token")
        rest = page.k - mean
        along = rest.dot(ops.signs(row=8, dim="D"), "dim")
        spread = along.square().mean("token").sqrt() + 1e-4
        weights = (2.0 * along / spread).softmax("token")
        return {"mean": mean, "support": (weights * rest).sum("token")}

    def forward_indexer(self, q, cache):
        scaled = q * ops.size("D") ** -0.5
        base = scaled.dot(cache["mean"], "dim")
        lift = (1.0 * scaled.dot(cache["support"], "dim")).logsumexp("row")
        return ops.topk((base + lift).softmax("page").mean("head"))
