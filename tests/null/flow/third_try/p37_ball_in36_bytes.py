from vortex_core import ops, register, vFlow


@register("ball_in_36_bytes")
class BallIn36Bytes(vFlow):
    """The page as a ball: centre in int4, radius in fp16. Heads are joined after division by |q_h|, which makes them
    comparable without a softmax over pages, and the best of them counts.

    score = max_h (q_h / |q_h|) . m + beta r,  r = sqrt(mean_t |k_t - m|^2 / D)
    Tune: 1.5 in [0.0, 5.0]
    """

    def create_cache(self, page):
        return {
            "mean": page.state(dim=page.head_dim, dtype="int4"),
            "radius": page.state(dtype="fp16"),
        }

    def forward_cache(self, page):
        mean = page.k.mean("token")
        return {"mean": mean, "radius": (page.k - mean).square().mean("token", "dim").sqrt()}

    def forward_indexer(self, q, cache):
        way = q / (q.norm("dim") + 1e-6)
        cosine = way.dot(cache["mean"], "dim").max("head")
        return ops.topk(cosine + 1.5 * cache["radius"])
