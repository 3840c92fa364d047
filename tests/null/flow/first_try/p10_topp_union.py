from vortex_core import Knobs, ops, register, vFlow


@register("topp_union")
class ToppUnion(vFlow):
    """Twilight-like top-p over estimated probabilities, joined with a fixed share of Quest's pages."""

    knobs = Knobs(budget="max(512, length / 8)", keep_first=1, keep_last=2)

    def create_cache(self, page):
        return {
            "kmax": page.state(dim=page.head_dim),
            "kmin": page.state(dim=page.head_dim),
            "mean": page.state(dim=page.head_dim),
        }

    def forward_cache(self, page):
        k = page.k
        return {"kmax": k.max("token"), "kmin": k.min("token"), "mean": k.mean("token")}

    def forward_indexer(self, q, cache):
        d = ops.size("D")
        upper = ops.maximum(q * cache["kmax"], q * cache["kmin"]).sum("dim") / d**0.5
        est = (q * cache["mean"]).sum("dim") / d**0.5
        adaptive = ops.topp(est.max("head"), 0.9)
        fixed = ops.topk(upper.max("head"), fraction=0.5)
        return adaptive | fixed
