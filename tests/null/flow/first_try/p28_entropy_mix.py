from vortex_core import ops, register, vFlow


@register("entropy_mix")
class EntropyMix(vFlow):
    """Heads are weighted by how peaked their page distribution is (low entropy heads count more)."""

    def create_cache(self, page):
        return {"mean": page.state(dim=page.head_dim)}

    def forward_cache(self, page):
        return {"mean": page.k.mean("token")}

    def forward_indexer(self, q, cache):
        logits = q.dot(cache["mean"], "dim") * ops.size("D") ** -0.5
        p = logits.softmax("page")
        entropy = -(p * (p + 1e-9).log()).sum("page")
        weight = (-entropy).softmax("head")
        return ops.topk((p * weight).sum("head"))
