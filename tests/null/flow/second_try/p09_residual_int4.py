from vortex_core import ops, register, vFlow


@register("residual_int4")
class ResidualInt4(vFlow):
    """Keys as an 8-bit page mean plus 4-bit residuals: errors common to a page cost most."""

    def create_cache(self, page):
        return {
            "mean": page.state(dim=page.head_dim, dtype="int8"),
            "res": page.state(row=page.size, dim=page.head_dim, dtype="int4"),
        }

    def forward_cache(self, page):
        mean = page.k.mean("token").to("int8", "dim")
        return {"mean": mean, "res": (page.k - mean).rename(token="row")}

    def forward_indexer(self, q, cache):
        logits = (q.dot(cache["mean"], "dim") + q.dot(cache["res"], "dim")) * ops.size("D") ** -0.5
        peak = logits.max("page", "row")
        mass = (logits - peak).exp().sum("row")
        return ops.topk((mass / mass.sum("page")).max("head"))
