from vortex_core import ops, register, vFlow


@register("t05_mean4_slow20")
class T05Mean4Slow20(vFlow):
    """A 4-bit mean of all channels and 4-bit residuals of the 40 slow ones."""

    def _slow(self, x):
        return ops.concat([x.slice("dim", "12*D/64", "D/2"), x.slice("dim", "44*D/64", "D")], "dim")

    def create_cache(self, page):
        return {
            "mean": page.state(dim=page.head_dim, dtype="int4"),
            "keys": page.state(row=page.size, dim="40*D/64", dtype="int4"),
        }

    def forward_cache(self, page):
        mean = page.k.mean("token").to("int4", "dim")
        return {"mean": mean, "keys": self._slow(page.k - mean).rename(token="row")}

    def forward_indexer(self, q, cache):
        logits = (q.dot(cache["mean"], "dim") + self._slow(q).dot(cache["keys"], "dim")) * ops.size(
            "D"
        ) ** -0.5
        return ops.topk(logits.softmax("page", "row").sum("row").mean("head"))
