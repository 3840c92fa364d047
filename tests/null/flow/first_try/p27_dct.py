import math

from vortex_core import ops, register, vFlow


@register("dct_pages")
class DCTPages(vFlow):
    """First two DCT coefficients of the keys along the page: mean and slope."""

    def create_cache(self, page):
        return {"c0": page.state(dim=page.head_dim), "c1": page.state(dim=page.head_dim)}

    def forward_cache(self, page):
        t = ops.arange(token=page.size)
        # cos(pi (t + 1/2) / S) is close to the line 1 - 2 (t + 1/2) / S
        slope = 1 - 2 * (t + 0.5) / page.size
        return {"c0": page.k.mean("token"), "c1": (page.k * slope).mean("token") * math.sqrt(2)}

    def forward_indexer(self, q, cache):
        a = (q * cache["c0"]).sum("dim")
        b = (q * cache["c1"]).sum("dim")
        return ops.topk((a + abs(b)).max("head"))
