from vortex_core import ops, register, vFlow


@register("stable_channels")
class StableChannels(vFlow):
    """Only channels whose spread in the page is small against their mean are trusted."""

    def create_cache(self, page):
        return {"m": page.state(dim=page.head_dim, dtype="int8")}

    def forward_cache(self, page):
        mean = page.k.mean("token")
        std = page.k.var("token").sqrt()
        ratio = std / (mean.abs() + 1e-3)
        stable = (ratio < 1.0) & (mean.abs() > 0.05)
        return {"m": ops.where(stable, mean, 0.0)}

    def forward_indexer(self, q, cache):
        strong = q.abs() >= q.abs().mean("dim")
        qs = ops.where(strong, q, 0.0 * q)
        return ops.topk((qs * cache["m"]).sum("dim").max("head"))
