from vortex_core import ops, register, vFlow


@register("mla_split")
class MLASplit(vFlow):
    """MLA: the latent by its centroid, the rotary channels by their extrema."""

    def create_cache(self, page):
        return {
            "nope": page.state(dim="N", dtype="fp8_e4m3"),
            "rmax": page.state(dim="R"),
            "rmin": page.state(dim="R"),
        }

    def forward_cache(self, page):
        rope = page.k.channels("rope")
        return {
            "nope": page.k.channels("nope").mean("token"),
            "rmax": rope.max("token"),
            "rmin": rope.min("token"),
        }

    def forward_indexer(self, q, cache):
        qn, qr = q.channels("nope"), q.channels("rope")
        content = (qn * cache["nope"]).sum("dim")
        place = ops.maximum(qr * cache["rmax"], qr * cache["rmin"]).sum("dim")
        scale = ops.size("D") ** -0.5
        return ops.topk(((content + place) * scale).max("head"))
