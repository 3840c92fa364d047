from vortex_core import ops, register, vFlow


@register("rest_and_outlier")
class RestAndOutlier(vFlow):
    """Two-point model of a page: the key farthest from the mean, and the mean of the others.

    j = argmax_t |k_t - mean|, far = k_j, rest = (S mean - far) / (S - 1)
    score(page) = mean_h softmax_pages(log((S - 1) exp(q_h . rest s) + exp(q_h . far s))), s = 1 / sqrt(D)
    """

    def create_cache(self, page):
        return {
            "rest": page.state(dim=page.head_dim, dtype="int4"),
            "far": page.state(dim=page.head_dim, dtype="int4"),
        }

    def forward_cache(self, page):
        centre = page.k.mean("token")
        dev = (page.k - centre).square().sum("dim")  # (token)
        far = page.k.take(dev.argmax("token"), "token")  # (dim)
        size = ops.size("S")
        return {"rest": (centre * size - far) / (size - 1), "far": far}

    def forward_indexer(self, q, cache):
        scale = ops.size("D") ** -0.5
        rest = q.dot(cache["rest"], "dim") * scale
        far = q.dot(cache["far"], "dim") * scale
        top = ops.maximum(rest, far)
        mass = (ops.size("S") - 1) * (rest - top).exp() + (far - top).exp()
        return ops.topk((top + mass.log()).softmax("page").mean("head"))
