from vortex_core import ops, register, vFlow


@register("two_means_mixture")
class TwoMeansMixture(vFlow):
    """Two-means clustering inside each page (three Lloyd steps, started from the mean and its farthest token), scored
    as a mixture of two isotropic Gaussians.

    score = mean_h softmax_page log sum_c n_c exp(q.c_c / sqrt(D) + 0.5 |q|^2 r_c^2 / D^2)
    Tune: 0.5 in [0.0, 1.0]
    """

    def create_cache(self, page):
        return {
            "near": page.state(dim=page.head_dim, dtype="int8"),
            "far": page.state(dim=page.head_dim, dtype="int8"),
            "near_log": page.state(dtype="fp16"),
            "far_log": page.state(dtype="fp16"),
            "near_var": page.state(dtype="fp16"),
            "far_var": page.state(dtype="fp16"),
        }

    def forward_cache(self, page):
        keys = page.k
        near = keys.mean("token")
        far = keys.take((keys - near).square().sum("dim").argmax("token"), "token")
        for step in range(3):
            gap_near = (keys - near).square().sum("dim")
            gap_far = (keys - far).square().sum("dim")
            in_near = ops.where(gap_near <= gap_far, 1.0, 0.0)
            in_far = 1.0 - in_near
            near = (keys * in_near).sum("token") / (in_near.sum("token") + 1e-4)
            far = (keys * in_far).sum("token") / (in_far.sum("token") + 1e-4)
        n_near = in_near.sum("token") + 1e-4
        n_far = in_far.sum("token") + 1e-4
        var_near = ((keys - near).square().mean("dim") * in_near).sum("token") / n_near
        var_far = ((keys - far).square().mean("dim") * in_far).sum("token") / n_far
        return {
            "near": near,
            "far": far,
            "near_log": n_near.log(),
            "far_log": n_far.log(),
            "near_var": var_near,
            "far_var": var_far,
        }

    def forward_indexer(self, q, cache):
        scaled = q * ops.size("D") ** -0.5
        power = scaled.square().sum("dim")
        a = scaled.dot(cache["near"], "dim") + cache["near_log"] + 0.5 * power * cache["near_var"]
        b = scaled.dot(cache["far"], "dim") + cache["far_log"] + 0.5 * power * cache["far_var"]
        top = ops.maximum(a, b)
        both = top + ((a - top).exp() + (b - top).exp()).log()
        return ops.topk(both.softmax("page").mean("head"))
