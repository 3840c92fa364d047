from vortex_core import ops, register, vFlow


@register("ellipsoid_bound")
class EllipsoidBound(vFlow):
    """Ellipsoid in place of a box: extreme value of sixteen tokens with the page's mean and spreads.

    m_h = q_h . mu / sqrt(D), sd_h = sqrt(sum_d q_hd^2 sigma_d^2) / sqrt(D)
    score(page) = mean_h softmax_pages(m_h + 1.5 sd_h); the expected maximum of 16 normals is 1.77 sd
    Tune: 1.5 in [0.2, 3.0]
    """

    def create_cache(self, page):
        return {
            "mu": page.state(dim=page.head_dim, dtype="int4"),
            "sigma": page.state(dim=page.head_dim, dtype="int4"),
        }

    def forward_cache(self, page):
        return {"mu": page.k.mean("token"), "sigma": page.k.std("token")}

    def forward_indexer(self, q, cache):
        scale = ops.size("D") ** -0.5
        middle = q.dot(cache["mu"], "dim") * scale
        spread = q.square().dot(cache["sigma"].square(), "dim").sqrt() * scale
        return ops.topk((middle + 1.5 * spread).softmax("page").mean("head"))
