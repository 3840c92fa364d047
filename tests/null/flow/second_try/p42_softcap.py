from vortex_core import ops, register, vFlow


@register("soft_capped")
class SoftCapped(vFlow):
    """Logits are capped softly before tokens are summed, so one token cannot hide a crowd."""

    def create_cache(self, page):
        return {"k": page.state(row=page.size, dim=page.head_dim, dtype="fp8_e5m2")}

    def forward_cache(self, page):
        return {"k": page.k.rename(token="row")}

    def forward_indexer(self, q, cache):
        cap = 30.0
        logits = cap * (q.dot(cache["k"], "dim") * ops.size("D") ** -0.5 / cap).tanh()
        return ops.topk(logits.exp().sum("row").log().mean("head"))
