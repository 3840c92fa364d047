from vortex_core import ops, register, vFlow


@register("trimmed_extrema")
class TrimmedExtrema(vFlow):
    """Second largest and second smallest values per channel: extrema without the outlier."""

    def create_cache(self, page):
        return {"hi": page.state(dim=page.head_dim), "lo": page.state(dim=page.head_dim)}

    def forward_cache(self, page):
        k = page.k
        top = k.largest(1, "token")
        bottom = (-k).largest(1, "token")
        hi = ops.where(top, -1e4, k).max("token")
        lo = ops.where(bottom, 1e4, k).min("token")
        return {"hi": hi, "lo": lo}

    def forward_indexer(self, q, cache):
        s = ops.where(q > 0, q * cache["hi"], q * cache["lo"]).sum("dim")
        return ops.topk(s.max("head"))
