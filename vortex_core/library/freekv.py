from vortex_core import ops, register, vFlow


@register("freekv")
class FreeKV(vFlow):
    """FreeKV (arXiv 2505.13109), selection: the query of the step before chooses, so that pages can be fetched ahead;
    where queries have turned since, the present ones do. One choice a kv head: by the mean cosine of its query heads.
    Differs: scores are those of mean keys.

    score(page) = sum_h softmax_page(u_h . mean k / sqrt(D)),  u = q_before if mean_h cos(q_h, q_before_h) > 0.9 else q
    """

    def create_cache(self, page):
        before = page.state(head="G", dim=page.head_dim, carried=True, scope="request")
        return {"mean": page.state(dim=page.head_dim), "before": before}

    def forward_cache(self, page):
        return {"mean": page.k.mean("token")}

    def forward_indexer(self, q, cache):
        before = cache["before"]
        alike = q.dot(before, "dim") / (q.norm("dim") * before.norm("dim") + 1e-6)
        used = ops.where(alike.mean("head") > 0.9, before, q)
        cache["before"] = q
        logits = used.dot(cache["mean"], "dim") / ops.size("D").sqrt()
        return ops.topk(logits.softmax("page").sum("head"))
