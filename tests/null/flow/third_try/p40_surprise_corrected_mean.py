from vortex_core import ops, register, vFlow


@register("surprise_corrected_mean")
class SurpriseCorrectedMean(vFlow):
    """The variance correction is a guess for pages not yet seen; for a page attended in the step before, ops.mass() tells
    the truth. Carried: the last estimate and a running log ratio of truth over estimate (a bandit's residual). Pages not
    attended keep their correction, slowly forgotten.

    r <- seen ? 0.5 r + 0.5 clamp(log(mass / guess_before)) : 0.95 r;  score = log guess + beta r
    Tune: 0.5 in [0.2, 0.9]; 0.95 in [0.8, 1.0]; 0.7 in [0.2, 1.0]
    """

    def create_cache(self, page):
        return {
            "mean": page.state(dim=page.head_dim, dtype="int8"),
            "var": page.state(dim=page.head_dim, dtype="fp8_e4m3"),
            "guess": page.state(carried=True, init=0.0, dtype="fp32"),
            "surprise": page.state(carried=True, init=0.0, dtype="fp32"),
        }

    def forward_cache(self, page):
        return {"mean": page.k.mean("token"), "var": page.k.var("token")}

    def forward_indexer(self, q, cache):
        scaled = q * ops.size("D") ** -0.5
        s = scaled.square().dot(cache["var"], "dim").relu()
        logits = scaled.dot(cache["mean"], "dim") + ops.minimum(0.5 * s, s.sqrt())
        guess = (logits.softmax("page").mean("head") + 1e-6).log()
        truth = ops.mass().mean("head")
        known = (truth > 0.0) & (cache["guess"] < 0.0)
        ratio = ((truth + 1e-6).log() - cache["guess"]).clamp(-3.0, 3.0)
        old = cache["surprise"]
        surprise = ops.where(known, 0.5 * old + 0.5 * ratio, 0.95 * old)
        cache["guess"] = guess
        cache["surprise"] = surprise
        return ops.topk(guess + 0.7 * surprise)
