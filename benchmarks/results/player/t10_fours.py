from vortex_core import ops, register, vFlow


@register("t10_fours")
class T10Fours(vFlow):
    """The 50 slow rotary channels of every token in four bits, one scale for four tokens."""

    def _slow(self, x):
        return ops.concat([x.slice("dim", "7*D/64", "D/2"), x.slice("dim", "39*D/64", "D")], "dim")

    def create_cache(self, page):
        return {"keys": page.state(row=page.size // 4, dim="200*D/64", dtype="int4")}

    def forward_cache(self, page):
        k = self._slow(page.k).split("token", row=page.size // 4)
        return {"keys": ops.concat([k.take(i, "token") for i in range(4)], "dim")}

    def forward_indexer(self, q, cache):
        q, keys = self._slow(q), cache["keys"]
        parts = [
            keys.slice("dim", 0, "50*D/64"),
            keys.slice("dim", "50*D/64", "100*D/64"),
            keys.slice("dim", "100*D/64", "150*D/64"),
            keys.slice("dim", "150*D/64", "200*D/64"),
        ]
        logits = [q.dot(part, "dim") * ops.size("D") ** -0.5 for part in parts]
        peak = logits[0]
        for other in logits[1:]:
            peak = ops.maximum(peak, other)
        peak = peak.max("page", "row")
        weights = sum((x - peak).exp().sum("row") for x in logits)
        return ops.topk((weights / weights.sum("page")).mean("head"))
