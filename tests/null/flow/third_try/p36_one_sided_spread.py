from vortex_core import ops, register, vFlow


@register("one_sided_spread")
class OneSidedSpread(vFlow):
    """Between Quest's extrema (power infinity) and a standard deviation (power 2, both sides): one-sided power means. The
    symmetric part folds into a shifted centre, so that two contractions are enough:
    relu(q) up + relu(-q) down = |q| (up + down) / 2 + q (up - down) / 2.

    score = max_h q.(m + beta (up - down) / 2) + beta |q|.(up + down) / 2
    Tune: 0.5 in [0.1, 1.5]; 3.0 in [2.0, 6.0]
    """

    def create_cache(self, page):
        return {
            "centre": page.state(dim=page.head_dim, dtype="int8"),
            "half": page.state(dim=page.head_dim, dtype="int4"),
        }

    def forward_cache(self, page):
        mean = page.k.mean("token")
        away = page.k - mean
        up = (away.relu().pow(3.0).mean("token") + 1e-8).pow(1.0 / 3.0)
        down = ((-away).relu().pow(3.0).mean("token") + 1e-8).pow(1.0 / 3.0)
        return {"centre": mean + 0.5 * 0.5 * (up - down), "half": 0.5 * (up + down)}

    def forward_indexer(self, q, cache):
        score = q.dot(cache["centre"], "dim") + 0.5 * q.abs().dot(cache["half"], "dim")
        return ops.topk(score.max("head"))
