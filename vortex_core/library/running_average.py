from vortex_core import ops, register, vFlow


@register("running_average")
class RunningAverage(vFlow):
    """Block top-k on a decaying sum of past scores (bundled with vortex_torch, arXiv 2606.06453). The sum
    is state of the request, so prefix pages cannot be shared.

    r(page) <- 0.9 r(page) + mean_h q_h . mean_t k_t, score = r
    """

    def create_cache(self, page):
        return {"centroid": page.state(dim=page.head_dim), "running": page.state(carried=True, dtype="fp32")}

    def forward_cache(self, page):
        return {"centroid": page.k.mean("token")}

    def forward_indexer(self, q, cache):
        cache["running"] = 0.9 * cache["running"] + (q.mean("head") * cache["centroid"]).sum("dim")
        return ops.topk(cache["running"])
