from vortex_core import ops, register, vFlow


@register("keydiff")
class KeyDiff(vFlow):
    """KeyDiff (Park et al., arXiv 2504.15364), page-relaxed: keys that are unlike the mean of all keys stay, whatever
    is asked. The original drops tokens for good; here a page is as unlike as its tokens are on average.

    score(page) = -mean_t cos(k_t, a),  a = mean over all tokens of k / norm(k)
    """

    def create_cache(self, page):
        return {"direction": page.state(dim=page.head_dim)}

    def forward_cache(self, page):
        return {"direction": page.k.normalize("dim").mean("token")}

    def forward_indexer(self, q, cache):
        anchor = cache["direction"].mean("page")
        return ops.topk(-cache["direction"].dot(anchor, "dim"))
