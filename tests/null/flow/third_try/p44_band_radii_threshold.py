from vortex_core import ops, register, vFlow


@register("band_radii_threshold")
class BandRadiiThreshold(vFlow):
    """Mean in int8, the spread as one radius for each of eight bands of eight channels. Each head gets its estimated share
    of attention over pages; the largest share of the heads must reach a floor, so sharp heads read fewer pages.

    s = sqrt(sum_b |q_b|^2 r_b^2);  p_h = softmax_page (q_h.m / sqrt(D) + beta s);  keep where max_h p_h >= floor
    Tune: 1.0 in [0.2, 2.4]; 0.008 in [0.001, 0.05]
    """

    def create_cache(self, page):
        return {
            "mean": page.state(dim=page.head_dim, dtype="int8"),
            "radius": page.state(band=8, dtype="fp8_e4m3"),
        }

    def forward_cache(self, page):
        mean = page.k.mean("token")
        away = (page.k - mean).square().mean("token").split("dim", band=8)
        return {"mean": mean, "radius": away.mean("dim").sqrt()}

    def forward_indexer(self, q, cache):
        scaled = q * ops.size("D") ** -0.5
        energy = scaled.square().split("dim", band=8).sum("dim")
        spread = energy.dot(cache["radius"].square(), "band").sqrt()
        share = (scaled.dot(cache["mean"], "dim") + 1.0 * spread).softmax("page")
        return ops.threshold(share.max("head"), 0.008)
