from vortex_core import ops, register, vFlow


@register("interval_mid_radius")
class IntervalMidRadius(vFlow):
    """Quest's box as centre and half width, the width in four bits: same bound, fewer bytes."""

    def create_cache(self, page):
        return {
            "mid": page.state(dim=page.head_dim, dtype="int8"),
            "half": page.state(dim=page.head_dim, dtype="int4"),
        }

    def forward_cache(self, page):
        hi, lo = page.k.max("token"), page.k.min("token")
        return {"mid": 0.5 * (hi + lo), "half": 0.5 * (hi - lo)}

    def forward_indexer(self, q, cache):
        s = q.dot(cache["mid"], "dim") + q.abs().dot(cache["half"], "dim")
        return ops.topk(s.max("head"))
