from vortex_core import ops, register, vFlow


@register("slow_rope")
class SlowRope(vFlow):
    """Only the slow half of the rotary pairs, for every token, in int8."""

    def slow(self, x):
        a = x.slice("dim", "D/4", "D/2")
        b = x.slice("dim", "3*D/4", "D")
        return ops.concat([a, b], "dim")

    def create_cache(self, page):
        return {"keys": page.state(row=page.size, dim="D/2", dtype="int8")}

    def forward_cache(self, page):
        return {"keys": self.slow(page.k).rename(token="row")}

    def forward_indexer(self, q, cache):
        logits = (self.slow(q) * cache["keys"]).sum("dim") * ops.size("D") ** -0.5
        p = (logits - logits.max("page", "row")).exp()
        return ops.topk(p.sum("row").mean("head"))
