from vortex_core import ops, register, vFlow


@register("h2o_decay")
class H2ODecay(vFlow):
    """Heavy hitters with an exponential decay of the attention mass each page received."""

    DECAY = 0.95

    def create_cache(self, page):
        return {"acc": page.state(carried=True, init=0.0, dtype="fp32")}

    def forward_cache(self, page):
        return {}

    def forward_indexer(self, q, cache):
        acc = self.DECAY * cache["acc"] + (1 - self.DECAY) * ops.mass().sum("head")
        cache["acc"] = acc
        return ops.topk(acc)
