from vortex_core import ops, register, vFlow


@register("score_ema")
class ScoreEMA(vFlow):
    """Exponential moving average of the page score over decode steps: selections change slowly."""

    def create_cache(self, page):
        return {
            "mean": page.state(dim=page.head_dim),
            "ema": page.state(carried=True, init=0.0),
        }

    def forward_cache(self, page):
        return {"mean": page.k.mean("token")}

    def forward_indexer(self, q, cache):
        s = (q * cache["mean"]).sum("dim") / ops.sqrt(ops.size("D"))
        p = s.softmax("page").max("head")
        cache["ema"] = 0.6 * cache["ema"] + 0.4 * p
        return ops.topk(p + cache["ema"])
