from vortex_core import ops, register, vFlow


@register("calibrated_bound")
class CalibratedBound(vFlow):
    """Box bound with a per-page bias learned online from the attention mass of the previous step.

    e = log mean_h softmax_pages((q_h . mid + 0.3 |q_h| . rad) / sqrt(D)), m = log mean_h mass
    attended: b <- 0.7 b + 0.3 clamp(m - e, -3, 3); else b <- 0.9 b; score = e + b
    Tune: 0.3 in [0.05, 1.0]; 0.7 in [0.3, 0.95]; 0.9 in [0.5, 1.0]
    """

    def create_cache(self, page):
        return {
            "mid": page.state(dim=page.head_dim, dtype="int4"),
            "rad": page.state(dim=page.head_dim, dtype="int4"),
            "bias": page.state(carried=True, init=0.0, dtype="fp32"),
        }

    def forward_cache(self, page):
        high = page.k.max("token")
        low = page.k.min("token")
        return {"mid": 0.5 * (high + low), "rad": 0.5 * (high - low)}

    def forward_indexer(self, q, cache):
        bound = q.dot(cache["mid"], "dim") + 0.3 * q.abs().dot(cache["rad"], "dim")
        est = (bound * ops.size("D") ** -0.5).softmax("page").mean("head")
        guess = (est + 1e-8).log()
        past = ops.mass().mean("head")  # (page)
        error = ((past + 1e-8).log() - guess).clamp(-3.0, 3.0)
        bias = ops.where(past > 0.0, 0.7 * cache["bias"] + 0.3 * error, 0.9 * cache["bias"])
        cache["bias"] = bias
        return ops.topk(guess + bias)
