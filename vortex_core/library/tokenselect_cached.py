from vortex_core import ops, register, vFlow


@register("tokenselect_cached")
class TokenSelectCached(vFlow):
    """TokenSelect (arXiv 2411.02886) with its cache of selections, page-relaxed: while the query stays like the one for
    which was selected last, that one's selection stays. Differs: likeness is the mean cosine of the heads of a kv head;
    what the kept query would select is computed anew, so that pages completed since can be selected.

    score(page) = sum_h sum_t softmax_t(u_h . k_t / sqrt(D)),  u = u_before if mean_h cos(q_h, u_before_h) > 0.9 else q
    """

    def create_cache(self, page):
        kept = page.state(head="G", dim=page.head_dim, carried=True, scope="request")
        return {"keys": page.state(row=page.size, dim=page.head_dim), "kept": kept}

    def forward_cache(self, page):
        return {"keys": page.k.rename(token="row")}

    def forward_indexer(self, q, cache):
        kept = cache["kept"]
        alike = q.dot(kept, "dim") / (q.norm("dim") * kept.norm("dim") + 1e-6)
        used = ops.where(alike.mean("head") > 0.9, kept, q)
        cache["kept"] = used
        logits = used.dot(cache["keys"], "dim") / ops.size("D").sqrt()
        weight = (logits - logits.max("page", "row")).exp().sum("row")
        return ops.topk((weight / weight.sum("page")).sum("head"))
