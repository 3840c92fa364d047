from vortex_core import ops, register, vFlow


@register("value_aware")
class ValueAware(vFlow):
    """Attention weight times the energy of the page's values."""

    def create_cache(self, page):
        return {
            "mean": page.state(dim=page.head_dim),
            "vnorm": page.state(dtype="fp16"),
        }

    def forward_cache(self, page):
        return {
            "mean": page.k.mean("token"),
            "vnorm": page.v.square().sum("dim").mean("token").sqrt(),
        }

    def forward_indexer(self, q, cache):
        s = (q * cache["mean"]).sum("dim") * ops.size("D") ** -0.5
        w = s.softmax("page").mean("head")
        return ops.topk(w * cache["vnorm"].clamp(min=1e-3))
