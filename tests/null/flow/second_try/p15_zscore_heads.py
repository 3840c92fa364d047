from vortex_core import ops, register, vFlow


@register("zscore_heads")
class ZScoreHeads(vFlow):
    """Scores are standardised over pages for each head, so that no loud head decides for the others."""

    def create_cache(self, page):
        return {"kmax": page.state(dim=page.head_dim), "kmin": page.state(dim=page.head_dim)}

    def forward_cache(self, page):
        return {"kmax": page.k.max("token"), "kmin": page.k.min("token")}

    def forward_indexer(self, q, cache):
        b = ops.maximum(q * cache["kmax"], q * cache["kmin"]).sum("dim")
        z = (b - b.mean("page")) / (b.std("page") + 1e-6)
        return ops.topk(z.max("head") + 0.25 * z.mean("head"))
