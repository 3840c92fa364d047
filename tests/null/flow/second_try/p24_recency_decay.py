from vortex_core import ops, register, vFlow


@register("recency_decay")
class RecencyDecay(vFlow):
    """A centroid score with a gentle bias to recent pages, as distance decays attention."""

    def create_cache(self, page):
        return {"c": page.state(dim=page.head_dim)}

    def forward_cache(self, page):
        return {"c": page.k.mean("token")}

    def forward_indexer(self, q, cache):
        age = (ops.pages() - ops.position()) / ops.pages()
        s = (q * cache["c"]).sum("dim") * ops.size("D") ** -0.5
        return ops.topk(s.max("head") - 0.5 * age)
