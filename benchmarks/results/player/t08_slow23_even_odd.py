from vortex_core import ops, register, vFlow


@register("t08_slow23_even_odd")
class T08Slow23EvenOdd(vFlow):
    """46 slow channels; odd tokens as residuals of the rounded even neighbour."""

    def _slow(self, x):
        return ops.concat([x.slice("dim", "10*D/64", "D/2"), x.slice("dim", "42*D/64", "D")], "dim")

    def _fast(self, x):
        return ops.concat([x.slice("dim", 0, "10*D/64"), x.slice("dim", "D/2", "42*D/64")], "dim")

    def create_cache(self, page):
        return {
            "keys": page.state(row=page.size, dim="44*D/64", dtype="int4"),
            "mean": page.state(dim="44*D/64", dtype="int4"),
        }

    def forward_cache(self, page):
        k = self._slow(page.k).rename(token="row")
        mean = k.mean("row").to("int4", "dim")
        return {"keys": k - mean, "mean": mean}

    def forward_indexer(self, q, cache):
        s = self._slow(q)
        logits = (s.dot(cache["keys"], "dim") + s.dot(cache["mean"], "dim")) * ops.size("D") ** -0.5
        return ops.topk(logits.softmax("page", "row").sum("row").mean("head"))
