from vortex_core import ops, register, vFlow


@register("center_halfwidth")
class CenterHalfWidth(vFlow):
    """Quest's box as centre and half width: q.c + |q|.w, width in int4."""

    def create_cache(self, page):
        return {
            "c": page.state(dim=page.head_dim, dtype="int8"),
            "w": page.state(dim=page.head_dim, dtype="int4"),
        }

    def forward_cache(self, page):
        hi, lo = page.k.amax("token"), page.k.amin("token")
        return {"c": (hi + lo) / 2, "w": (hi - lo) / 2}

    def forward_indexer(self, q, cache):
        score = (q * cache["c"] + q.abs() * cache["w"]).sum("dim")
        return ops.topk(score.max("head"))
