from vortex_core import ops, register, vFlow


@register("l2norm")
class L2Norm(vFlow):
    """L2 norms of keys (Devoto et al., arXiv 2406.11430), page-relaxed: keys of small norm receive the most attention,
    so they stay, whatever is asked. The original drops tokens for good; here pages stay by their smallest norm.

    score(page) = -min_t norm(k_t)
    """

    def create_cache(self, page):
        return {"norm": page.state(dtype="fp32")}

    def forward_cache(self, page):
        return {"norm": page.k.norm("dim").min("token")}

    def forward_indexer(self, q, cache):
        return ops.topk(-cache["norm"])
