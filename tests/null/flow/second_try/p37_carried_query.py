from vortex_core import ops, register, vFlow


@register("score_momentum")
class ScoreMomentum(vFlow):
    """Scores carry over from step to step with momentum, so the selection does not flicker."""

    def create_cache(self, page):
        return {
            "kmax": page.state(dim=page.head_dim),
            "kmin": page.state(dim=page.head_dim),
            "last": page.state(carried=True, init=0.0),
        }

    def forward_cache(self, page):
        return {"kmax": page.k.max("token"), "kmin": page.k.min("token")}

    def forward_indexer(self, q, cache):
        now = ops.maximum(q * cache["kmax"], q * cache["kmin"]).sum("dim").softmax("page").mean("head")
        smooth = 0.7 * now + 0.3 * cache["last"]
        cache["last"] = smooth
        return ops.topk(smooth)
