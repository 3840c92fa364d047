from vortex_core import ops, register, vFlow


@register("t01_slow23")
class T01Slow23(vFlow):
    """The 46 slow rotary channels of every token in four bits; share of estimated attention, mean of heads."""

    def _slow(self, x):
        return ops.concat([x.slice("dim", "9*D/64", "D/2"), x.slice("dim", "41*D/64", "D")], "dim")

    def create_cache(self, page):
        return {
            "keys": page.state(row=page.size, dim="46*D/64", dtype="int4"),
        }

    def forward_cache(self, page):
        return {"keys": self._slow(page.k).rename(token="row")}

    def forward_indexer(self, q, cache):
        logits = self._slow(q).dot(cache["keys"], "dim") * ops.size("D") ** -0.5
        return ops.topk(logits.softmax("page", "row").sum("row").mean("head"))
