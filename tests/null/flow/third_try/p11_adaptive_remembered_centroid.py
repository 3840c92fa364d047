from vortex_core import ops, register, vFlow


@register("adaptive_remembered_centroid")
class AdaptiveRememberedCentroid(vFlow):
    """Top-p over a centroid's estimated mass with memory (top-p as in Twilight, arXiv 2502.02770).

    p_h = softmax_pages(q_h . mean_t k_t / sqrt(D)); e = mean_h p_h
    r <- 0.6 r + 0.4 e; s = log(max(e, 0.7 r)); best pages until their softmax mass reaches 0.92
    Tune: 0.6 in [0.2, 0.95]; 0.7 in [0.2, 1.5]; 0.92 in [0.7, 0.99]
    """

    def create_cache(self, page):
        return {
            "c": page.state(dim=page.head_dim, dtype="int4"),
            "r": page.state(carried=True, init=0.0, dtype="fp32"),
        }

    def forward_cache(self, page):
        return {"c": page.k.mean("token")}

    def forward_indexer(self, q, cache):
        est = (q.dot(cache["c"], "dim") * ops.size("D") ** -0.5).softmax("page").mean("head")
        run = 0.6 * cache["r"] + 0.4 * est
        cache["r"] = run
        score = (ops.maximum(est, 0.7 * run) + 1e-9).log()
        return ops.topp(score, 0.92)
