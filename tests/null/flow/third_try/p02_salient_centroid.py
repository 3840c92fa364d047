from vortex_core import ops, register, vFlow


@register("salient_centroid")
class SalientCentroid(vFlow):
    """One int4 vector a page: the keys pooled by how far each stands out of its page.

    dev_t = |k_t - mean k|, w = softmax_t(3 dev_t / mean dev), c = sum_t w_t k_t
    score(page) = mean_h softmax_pages(q_h . c / sqrt(D))
    Tune: 3.0 in [0.5, 10.0]
    """

    def create_cache(self, page):
        return {"c": page.state(dim=page.head_dim, dtype="int4")}

    def forward_cache(self, page):
        centre = page.k.mean("token")
        dev = (page.k - centre).norm("dim")  # (token)
        weight = (3.0 * dev / (dev.mean("token") + 1e-6)).softmax("token")
        return {"c": (page.k * weight).sum("token")}

    def forward_indexer(self, q, cache):
        logits = q.dot(cache["c"], "dim") * ops.size("D") ** -0.5
        return ops.topk(logits.softmax("page").mean("head"))
