from vortex_core import Knobs, ops, register, vFlow


@register("z_threshold")
class ZThreshold(vFlow):
    """Pages whose score stands out by a standard deviation or more."""

    knobs = Knobs(budget="length / 8")

    def create_cache(self, page):
        return {"mean": page.state(dim=page.head_dim)}

    def forward_cache(self, page):
        return {"mean": page.k.mean("token")}

    def forward_indexer(self, q, cache):
        s = (q * cache["mean"]).sum("dim").mean("head")
        z = (s - s.mean("page")) / (s.var("page") + 1e-6).sqrt()
        return ops.threshold(z, 1.0)
