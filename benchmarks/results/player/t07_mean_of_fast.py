from vortex_core import ops, register, vFlow


@register("t07_mean_of_fast")
class T07MeanOfFast(vFlow):
    """Slow channels of every token in four bits, the page mean of the fast ones in eight."""

    def _slow(self, x):
        return ops.concat([x.slice("dim", "11*D/64", "D/2"), x.slice("dim", "43*D/64", "D")], "dim")

    def _fast(self, x):
        return ops.concat([x.slice("dim", 0, "11*D/64"), x.slice("dim", "D/2", "43*D/64")], "dim")

    def create_cache(self, page):
        return {
            "keys": page.state(row=page.size, dim="42*D/64", dtype="int4"),
            "fast": page.state(fast="22*D/64", dtype="int8"),
        }

    def forward_cache(self, page):
        k = page.k.rename(token="row")
        return {"keys": self._slow(k), "fast": self._fast(k).rename(dim="fast").mean("row")}

    def forward_indexer(self, q, cache):
        slow = self._slow(q).dot(cache["keys"], "dim")
        logits = (slow + self._fast(q).rename(dim="fast").dot(cache["fast"], "fast")) * ops.size("D") ** -0.5
        return ops.topk(logits.softmax("page", "row").sum("row").mean("head"))
