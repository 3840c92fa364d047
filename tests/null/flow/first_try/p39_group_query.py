from vortex_core import ops, register, vFlow


@register("group_query")
class GroupQuery(vFlow):
    """Mean and spread of the query group: q_mean.c + sqrt(var_h(q)).|c|."""

    def create_cache(self, page):
        return {"c": page.state(dim=page.head_dim, dtype="fp8_e4m3")}

    def forward_cache(self, page):
        weight = page.k.norm("dim").softmax("token")
        return {"c": (page.k * weight).sum("token")}

    def forward_indexer(self, q, cache):
        mean = q.mean("head")
        std = (q - mean).pow(2).mean("head").sqrt()
        s = (mean * cache["c"]).sum("dim") + (std * cache["c"].abs()).sum("dim")
        return ops.topk(s)
