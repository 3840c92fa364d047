from vortex_core import ops, register, vFlow


@register("power_mean")
class PowerMean(vFlow):
    """A soft maximum of the keys by a power mean of order 4, split by sign."""

    P = 4

    def create_cache(self, page):
        return {"pos": page.state(dim=page.head_dim), "neg": page.state(dim=page.head_dim)}

    def forward_cache(self, page):
        k = page.k
        pos = (k.clamp(min=0) ** self.P).mean("token") ** (1 / self.P)
        neg = ((-k).clamp(min=0) ** self.P).mean("token") ** (1 / self.P)
        return {"pos": pos, "neg": neg}

    def forward_indexer(self, q, cache):
        up = q.clamp(min=0) * cache["pos"] + (-q).clamp(min=0) * cache["neg"]
        return ops.topk(up.sum("dim").max("head"))
