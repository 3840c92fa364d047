from vortex_core import ops, register, vFlow


@register("lfps")
class LFPS(vFlow):
    """LFPS (arXiv 2506.15704), page-relaxed: what was attended before is attended again, at the same place
    (verticals) and one token further each step (slashes). Verticals are a decaying sum of mass; a slash
    stays in its page or enters the next, so the newest mass is max-pooled over neighbours. Mean keys stand
    in until mass is there.

    a(page) <- 0.9 a(page) + m(page), score = a + maxpool_3(m), m = sum_h mass_h(page)
    """

    def create_cache(self, page):
        return {"centroid": page.state(dim=page.head_dim), "vertical": page.state(carried=True, dtype="fp32")}

    def forward_cache(self, page):
        return {"centroid": page.k.mean("token")}

    def forward_indexer(self, q, cache):
        estimate = ((q * cache["centroid"]).sum("dim") / ops.size("D").sqrt()).softmax("page").sum("head")
        mass = ops.where(ops.mass().sum("head").sum("page") > 0, ops.mass().sum("head"), estimate)
        cache["vertical"] = 0.9 * cache["vertical"] + mass
        return ops.topk(cache["vertical"] + mass.maxpool(3))
