from vortex_core import ops, register, vFlow


@register("t06_signs_of_fast")
class T06SignsOfFast(vFlow):
    """Slow channels of every token in four bits, signs of the fast ones with one size a page."""

    def _slow(self, x):
        return ops.concat([x.slice("dim", "12*D/64", "D/2"), x.slice("dim", "44*D/64", "D")], "dim")

    def _fast(self, x):
        return ops.concat([x.slice("dim", 0, "12*D/64"), x.slice("dim", "D/2", "44*D/64")], "dim")

    def create_cache(self, page):
        return {
            "keys": page.state(row=page.size, dim="40*D/64", dtype="int4"),
            "signs": page.state(row=page.size, fast="24*D/64", dtype="bits"),
            "size": page.state(),
        }

    def forward_cache(self, page):
        k = page.k.rename(token="row")
        fast = self._fast(k).rename(dim="fast")
        return {"keys": self._slow(k), "signs": fast, "size": fast.abs().mean("fast", "row")}

    def forward_indexer(self, q, cache):
        slow = self._slow(q).dot(cache["keys"], "dim")
        fast = self._fast(q).rename(dim="fast").dot(cache["signs"], "fast") * cache["size"]
        logits = (slow + fast) * ops.size("D") ** -0.5
        return ops.topk(logits.softmax("page", "row").sum("row").mean("head"))
