from vortex_core import ops, register, vFlow


@register("bulk_and_needle_union")
class BulkAndNeedleUnion(vFlow):
    """Eight pair means in int4. Bulk: log-sum-exp over rows, averaged over heads. Needle: how far the best row rises above
    the mean of the page's rows, added to its logit, best head. The selections are united.

    bulk = mean_h logsumexp_r x_hr;  needle = max_h (max_r x_hr + beta (max_r x_hr - mean_r x_hr))
    Tune: 0.5 in [0.0, 2.0]; 0.5 in [0.25, 0.75]
    """

    def create_cache(self, page):
        return {"pair": page.state(row=8, dim=page.head_dim, dtype="int4")}

    def forward_cache(self, page):
        return {"pair": page.k.split("token", row=8).mean("token")}

    def forward_indexer(self, q, cache):
        logits = (q * ops.size("D") ** -0.5).dot(cache["pair"], "dim")
        best = logits.max("row")
        bulk = logits.logsumexp("row").mean("head")
        needle = (best + 0.5 * (best - logits.mean("row"))).max("head")
        return ops.topk(bulk, fraction=0.5) | ops.topk(needle, fraction=0.5)
