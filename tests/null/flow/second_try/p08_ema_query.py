from vortex_core import ops, register, vFlow


@register("ema_mass")
class EmaMass(vFlow):
    """An exponential average of the attention each page received, added to the centroid score."""

    def create_cache(self, page):
        return {
            "c": page.state(dim=page.head_dim),
            "acc": page.state(carried=True, init=0.0, dtype="fp32"),
        }

    def forward_cache(self, page):
        return {"c": page.k.mean("token")}

    def forward_indexer(self, q, cache):
        mass = ops.mass().mean("head")
        cache["acc"] = 0.9 * cache["acc"] + 0.1 * mass
        score = (q.dot(cache["c"], "dim") * ops.size("D") ** -0.5).softmax("page").mean("head")
        return ops.topk(score + 0.5 * cache["acc"])
