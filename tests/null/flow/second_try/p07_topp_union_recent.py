from vortex_core import Knobs, ops, register, vFlow


@register("topp_union")
class ToppUnion(vFlow):
    """Twilight-style top-p over an int4 estimate, united with Quest's bound on a part of the budget."""

    knobs = Knobs(budget="max(256, length // 12)")

    def create_cache(self, page):
        return {
            "kmax": page.state(dim=page.head_dim, dtype="int8"),
            "kmin": page.state(dim=page.head_dim, dtype="int8"),
            "mean": page.state(dim=page.head_dim, dtype="int4"),
        }

    def forward_cache(self, page):
        return {"kmax": page.k.max("token"), "kmin": page.k.min("token"), "mean": page.k.mean("token")}

    def forward_indexer(self, q, cache):
        scale = ops.size("D") ** -0.5
        bound = ops.maximum(q * cache["kmax"], q * cache["kmin"]).sum("dim") * scale
        avg = q.dot(cache["mean"], "dim") * scale
        return ops.topk(bound.max("head"), fraction=0.5) | ops.topp(avg.mean("head"), 0.9)
