from vortex_core import ops, register, vFlow


@register("butterfly_bits")
class ButterflyBits(vFlow):
    """A butterfly rotation spreads outliers before keys are cut to one bit a channel."""

    def rotate(self, x):
        lo = x.slice("dim", 0, "D/2")
        hi = x.slice("dim", "D/2", "D")
        return lo + hi, lo - hi

    def create_cache(self, page):
        return {
            "a": page.state(row=page.size, dim=page.head_dim // 2, dtype="bits"),
            "b": page.state(row=page.size, dim=page.head_dim // 2, dtype="bits"),
            "n": page.state(row=page.size, dtype="fp8_e4m3"),
        }

    def forward_cache(self, page):
        k = page.k.rename(token="row")
        a, b = self.rotate(k)
        return {"a": a, "b": b, "n": k.abs().mean("dim")}

    def forward_indexer(self, q, cache):
        qa, qb = self.rotate(q)
        est = (qa * cache["a"]).sum("dim") + (qb * cache["b"]).sum("dim")
        logits = est * cache["n"] / ops.size("D").sqrt()
        return ops.topk(logits.max("row").max("head"))
