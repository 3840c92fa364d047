from vortex_core import ops, register, vFlow


@register("raas")
class RaaS(vFlow):
    """RaaS (arXiv 2502.11147), page-relaxed: a page that receives enough attention is marked as of now, and
    the pages marked longest ago are left out. The original drops them for good; its threshold on mass,
    0.0001 of a head, is kept. Mean keys stand in until mass is there.

    score(page) = -steps since sum_h mass_h(page) was last above 0.0001
    """

    def create_cache(self, page):
        return {"centroid": page.state(dim=page.head_dim), "idle": page.state(carried=True, dtype="fp32")}

    def forward_cache(self, page):
        return {"centroid": page.k.mean("token")}

    def forward_indexer(self, q, cache):
        estimate = ((q * cache["centroid"]).sum("dim") / ops.size("D").sqrt()).softmax("page").sum("head")
        mass = ops.where(ops.mass().sum("head").sum("page") > 0, ops.mass().sum("head"), estimate)
        cache["idle"] = ops.where(mass > 0.0001, 0.0, cache["idle"] + 1)
        return ops.topk(-cache["idle"])
