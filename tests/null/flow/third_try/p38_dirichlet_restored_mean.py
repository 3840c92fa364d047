from vortex_core import ops, register, vFlow


@register("dirichlet_restored_mean")
class DirichletRestoredMean(vFlow):
    """A constant key turned by w radians a token has a page mean shrunk by sin(S w / 2) / (S sin(w / 2)), about
    1 / sqrt(1 + (S w)^2 / 12) without zeros. The query is multiplied by a damped inverse (Wiener: a channel that turned
    often has lost its phase and is faded out), and the lost part returns as amplitude, pair by pair, free of phase.

    score = mean_h softmax_page (q g . m + beta sum_pairs |q_pair| a_pair (1 - 1/g'))
    Tune: 0.3 in [0.0, 1.0]; 12.0 in [4.0, 48.0]; 0.2 in [0.0, 0.5]
    """

    def create_cache(self, page):
        return {
            "mean": page.state(dim=page.head_dim, dtype="int8"),
            "amp": page.state(dim="D/2", dtype="int4"),
        }

    def forward_cache(self, page):
        mean = page.k.mean("token")
        away = (page.k - mean).split("dim", part=2)
        return {"mean": mean, "amp": away.square().sum("part").mean("token").sqrt()}

    def forward_indexer(self, q, cache):
        turn = 16.0 * ops.rotary()
        shrink = (1.0 + turn.square() / 12.0) ** -0.5
        gain = shrink * (1.0 + 0.2) / (shrink.square() + 0.2)
        scaled = q * ops.size("D") ** -0.5
        base = (scaled * gain).dot(cache["mean"], "dim")
        reach = (scaled.square().split("dim", part=2).sum("part")).sqrt()
        lost = reach.dot(cache["amp"], "dim")
        return ops.topk((base + 0.3 * lost).softmax("page").mean("head"))
