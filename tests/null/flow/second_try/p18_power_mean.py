from vortex_core import ops, register, vFlow


@register("power_mean")
class PowerMean(vFlow):
    """Signed power means of keys, between mean (p=1) and extrema (p=inf)."""

    def create_cache(self, page):
        return {"pos": page.state(dim=page.head_dim), "neg": page.state(dim=page.head_dim)}

    def forward_cache(self, page):
        p = 4
        pos = (page.k.relu() ** p).mean("token") ** (1 / p)
        neg = ((-page.k).relu() ** p).mean("token") ** (1 / p)
        return {"pos": pos, "neg": neg}

    def forward_indexer(self, q, cache):
        up = q.clamp(min=0.0)
        down = (-q).clamp(min=0.0)
        s = (up * cache["pos"] + down * cache["neg"]).sum("dim")
        return ops.topk(s.max("head"))
