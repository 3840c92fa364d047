from vortex_core import ops, register, vFlow


@register("value_weighted_centroid")
class ValueWeightedCentroid(vFlow):
    """Estimated mass times the norm of the values (as value-aware eviction does, VATP, arXiv 2406.12335).

    weight(page) = (max_t |v_t| + mean_t |v_t|) / 2
    score(page) = mean_h softmax_pages(q_h . mean_t k_t / sqrt(D)) * weight ^ 0.75
    Tune: 0.75 in [0.1, 2.0]
    """

    def create_cache(self, page):
        return {
            "c": page.state(dim=page.head_dim, dtype="int4"),
            "weight": page.state(dtype="bf16"),
        }

    def forward_cache(self, page):
        size = page.v.norm("dim")  # (token)
        weight = 0.5 * (size.max("token") + size.mean("token")) + 1e-6
        return {"c": page.k.mean("token"), "weight": (0.75 * weight.log()).exp()}

    def forward_indexer(self, q, cache):
        mass = (q.dot(cache["c"], "dim") * ops.size("D") ** -0.5).softmax("page")
        return ops.topk(mass.mean("head") * cache["weight"])
