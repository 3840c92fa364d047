from vortex_core import ops, register, vFlow


@register("query_variance_mix")
class QueryVarianceMix(vFlow):
    """Query heads that agree are averaged, those that differ are taken by maximum."""

    def create_cache(self, page):
        return {"c": page.state(dim=page.head_dim)}

    def forward_cache(self, page):
        return {"c": page.k.mean("token")}

    def forward_indexer(self, q, cache):
        s = q.dot(cache["c"], "dim") * ops.size("D") ** (-0.5)
        agree = q.mean("head").norm("dim") / q.norm("dim").mean("head")
        return ops.topk(agree * s.mean("head") + (1 - agree) * s.max("head"))
