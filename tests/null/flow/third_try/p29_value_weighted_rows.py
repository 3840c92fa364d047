from vortex_core import ops, register, vFlow


@register("value_weighted_rows")
class ValueWeightedRows(vFlow):
    """Four sub-page means in int4, each with the log of its tokens' mean value norm (value-aware eviction: VATP,
    arXiv 2406.12335). The log is added to the logit, the product in the log domain.

    score = mean_h softmax_page logsumexp_r (q_h . c_r / sqrt(D) + gamma log |v|_r)
    Tune: 0.7 in [0.0, 1.5]; 1.5 in [1.0, 2.5]
    """

    def create_cache(self, page):
        return {
            "centre": page.state(row=4, dim=page.head_dim, dtype="int4"),
            "value": page.state(row=4, dtype="fp16"),
        }

    def forward_cache(self, page):
        norms = page.v.norm("dim").split("token", row=4).mean("token")
        return {
            "centre": page.k.split("token", row=4).mean("token"),
            "value": (norms + 1e-4).log(),
        }

    def forward_indexer(self, q, cache):
        logits = 1.5 * ops.size("D") ** -0.5 * q.dot(cache["centre"], "dim")
        mass = (logits + 0.7 * cache["value"]).logsumexp("row")
        return ops.topk(mass.softmax("page").mean("head"))
