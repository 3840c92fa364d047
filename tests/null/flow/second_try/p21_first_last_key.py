from vortex_core import ops, register, vFlow


@register("ends_and_mean")
class EndsAndMean(vFlow):
    """First and last key of the page beside its mean: rotation moves keys smoothly between them."""

    def create_cache(self, page):
        return {"c": page.state(rep=3, dim=page.head_dim, dtype="int8")}

    def forward_cache(self, page):
        first = page.k.slice("token", 0, 1).mean("token")
        last = page.k.slice("token", "S-1", "S").mean("token")
        mean = page.k.mean("token")
        reps = ops.arange(rep=3)
        return {"c": ops.where(reps == 0, first, ops.where(reps == 1, mean, last))}

    def forward_indexer(self, q, cache):
        return ops.topk(q.dot(cache["c"], "dim").max("rep").max("head"))
