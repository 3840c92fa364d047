from vortex_core import ops, register, vFlow


@register("mean_or_bound")
class MeanOrBound(vFlow):
    """A convex mix of mean and bound, by how spread the page is relative to its mean."""

    def create_cache(self, page):
        return {
            "kmax": page.state(dim=page.head_dim, dtype="int8"),
            "kmin": page.state(dim=page.head_dim, dtype="int8"),
            "mu": page.state(dim=page.head_dim, dtype="int8"),
            "mix": page.state(),
        }

    def forward_cache(self, page):
        mu = page.k.mean("token")
        spread = page.k.std("token").mean("dim")
        level = mu.abs().mean("dim") + 1e-6
        return {
            "kmax": page.k.max("token"),
            "kmin": page.k.min("token"),
            "mu": mu,
            "mix": (spread / level).sigmoid(),
        }

    def forward_indexer(self, q, cache):
        ub = ops.maximum(q * cache["kmax"], q * cache["kmin"]).sum("dim")
        mean = q.dot(cache["mu"], "dim")
        m = cache["mix"]
        score = (1.0 - m) * mean + m * ub
        return ops.topk(score.max("head"))
