from vortex_core import ops, register, vFlow


@register("freekv")
class FreeKV(vFlow):
    """FreeKV (arXiv 2505.13109), selection: the scores of the step before choose, so that pages can be fetched ahead;
    where the query has turned since, the present ones do. Differs: one cosine, of the mean query of a kv head, which
    every page carries, and scores are those of mean keys.

    score(page) = s_before(page) if cos(q, q_before) > 0.9 else s(page),  s = sum_h softmax_page(q_h . mean k / sqrt(D))
    """

    def create_cache(self, page):
        last = {
            "query": page.state(dim=page.head_dim, carried=True),
            "score": page.state(carried=True, dtype="fp32"),
        }
        return {"mean": page.state(dim=page.head_dim), **last}

    def forward_cache(self, page):
        return {"mean": page.k.mean("token")}

    def forward_indexer(self, q, cache):
        query, logits = q.mean("head"), q.dot(cache["mean"], "dim") / ops.size("D").sqrt()
        score = logits.softmax("page").sum("head")
        alike = cache["query"].dot(query, "dim") / (cache["query"].norm("dim") * query.norm("dim") + 1e-6)
        chosen = ops.where(alike > 0.9, cache["score"], score)
        cache["query"], cache["score"] = query, score
        return ops.topk(chosen)
