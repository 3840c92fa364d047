from vortex_core import Knobs, ops, register, vFlow


@register("shared_layers")
class SharedLayers(vFlow):
    """Kascade: anchor layers select, the next three reuse; token-level mean of maxima."""

    knobs = Knobs(reuse_layers=4, dense_layers=(0, 1), budget="256 if length < 8192 else length / 32")

    def create_cache(self, page):
        rows = page.size // 4
        return {"rows": page.state(row=rows, dim=page.head_dim, dtype="fp8_e4m3")}

    def forward_cache(self, page):
        rows = page.size // 4
        return {"rows": page.k.split("token", row=rows).mean("token")}

    def forward_indexer(self, q, cache):
        s = (q * cache["rows"]).sum("dim") * ops.size("D") ** -0.5
        top = s.max("row")
        return ops.topk(top.softmax("page").mean("head"), recall=0.95)
