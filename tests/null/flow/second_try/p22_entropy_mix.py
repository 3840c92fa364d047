from vortex_core import ops, register, vFlow


@register("entropy_mix")
class EntropyMix(vFlow):
    """Heads with a peaked estimate weigh more: each head's page distribution is weighted by its low entropy."""

    def create_cache(self, page):
        return {"c": page.state(dim=page.head_dim)}

    def forward_cache(self, page):
        return {"c": page.k.mean("token")}

    def forward_indexer(self, q, cache):
        p = (q.dot(cache["c"], "dim") / ops.size("D") ** 0.5).softmax("page")
        entropy = -(p * (p + 1e-9).log()).sum("page")
        weight = 1 / (1 + entropy)
        return ops.topk((p * weight).sum("head") / weight.sum("head"))
