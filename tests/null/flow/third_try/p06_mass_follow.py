from vortex_core import ops, register, vFlow


@register("mass_follow")
class MassFollow(vFlow):
    """Centroid estimate plus the true attention of the step before, spread to adjacent pages.

    est = softmax_pages(q_h . mean_t k_t / sqrt(D)), m = attention mass of the previous step
    score(page) = mean_h max(est, 0.5 m, 0.2 maxpool_3(m))
    Tune: 0.5 in [0.1, 1.5]; 0.2 in [0.0, 0.6]
    """

    def create_cache(self, page):
        return {"c": page.state(dim=page.head_dim, dtype="int4")}

    def forward_cache(self, page):
        return {"c": page.k.mean("token")}

    def forward_indexer(self, q, cache):
        est = (q.dot(cache["c"], "dim") * ops.size("D") ** -0.5).softmax("page")
        past = ops.mass()  # (page, head)
        memory = ops.maximum(0.5 * past, 0.2 * past.maxpool(3, "page"))
        return ops.topk(ops.maximum(est, memory).mean("head"))
