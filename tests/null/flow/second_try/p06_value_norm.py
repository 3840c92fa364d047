from vortex_core import ops, register, vFlow


@register("value_norm_weighted")
class ValueNormWeighted(vFlow):
    """Mass on tiny values does not matter: the centroid logit plus the log of the mean value norm."""

    def create_cache(self, page):
        return {"c": page.state(dim=page.head_dim), "v": page.state(dtype="fp16")}

    def forward_cache(self, page):
        weight = page.v.norm("dim")
        return {
            "c": (page.k * weight).sum("token") / (weight.sum("token") + 1e-6),
            "v": weight.mean("token"),
        }

    def forward_indexer(self, q, cache):
        logit = q.dot(cache["c"], "dim") / ops.sqrt(ops.size("D"))
        return ops.topk((logit + (cache["v"] + 1e-6).log()).max("head"))
