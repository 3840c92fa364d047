from vortex_core import ops, register, vFlow


@register("farthest_point_tokens")
class FarthestPointTokens(vFlow):
    """Greedy k-centre (Gonzalez 1985) inside the page: begin at the mean, add three times the token farthest from all
    representatives so far, by a computed gather. The mean stands for the bulk, the outliers for themselves.

    score = max_h max(q.m + 1.0 * |q| * 0, q.k_a, q.k_b, q.k_c) after removing each head's own scale |q_h|
    Tune: 0.5 in [0.0, 2.0]
    """

    def create_cache(self, page):
        return {
            "mean": page.state(dim=page.head_dim, dtype="int8"),
            "far_a": page.state(dim=page.head_dim, dtype="int8"),
            "far_b": page.state(dim=page.head_dim, dtype="int8"),
            "far_c": page.state(dim=page.head_dim, dtype="int8"),
        }

    def forward_cache(self, page):
        mean = page.k.mean("token")
        gap = (page.k - mean).square().sum("dim")
        far_a = page.k.take(gap.argmax("token"), "token")
        gap = ops.minimum(gap, (page.k - far_a).square().sum("dim"))
        far_b = page.k.take(gap.argmax("token"), "token")
        gap = ops.minimum(gap, (page.k - far_b).square().sum("dim"))
        far_c = page.k.take(gap.argmax("token"), "token")
        return {"mean": mean, "far_a": far_a, "far_b": far_b, "far_c": far_c}

    def forward_indexer(self, q, cache):
        scaled = q * ops.size("D") ** -0.5
        bulk = scaled.dot(cache["mean"], "dim") + 0.5
        best = ops.maximum(scaled.dot(cache["far_a"], "dim"), scaled.dot(cache["far_b"], "dim"))
        best = ops.maximum(best, scaled.dot(cache["far_c"], "dim"))
        return ops.topk(ops.maximum(bulk, best).softmax("page").mean("head"))
