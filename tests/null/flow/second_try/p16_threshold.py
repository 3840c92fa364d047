from vortex_core import Knobs, ops, register, vFlow


@register("threshold_share")
class ThresholdShare(vFlow):
    """Pages whose estimated share of attention is above a hundredth of the even share times ten."""

    knobs = Knobs(budget="512")

    def create_cache(self, page):
        return {"c": page.state(dim=page.head_dim)}

    def forward_cache(self, page):
        return {"c": page.k.mean("token")}

    def forward_indexer(self, q, cache):
        p = (q.dot(cache["c"], "dim") * ops.size("D") ** -0.5).softmax("page").max("head")
        return ops.threshold(p * ops.pages(), 0.1)
