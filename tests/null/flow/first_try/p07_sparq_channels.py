from vortex_core import ops, register, vFlow


@register("sparq_channels")
class SparqChannels(vFlow):
    """SparQ: only the r largest channels of the query take part, with a corrected temperature.

    score(page) = mean_h sum_t softmax(q_top . k_top / tau)
    """

    def create_cache(self, page):
        return {"keys": page.state(row=page.size, dim=page.head_dim, dtype="int8")}

    def forward_cache(self, page):
        return {"keys": page.k.rename(token="row")}

    def forward_indexer(self, q, cache):
        mask = q.abs().largest(16, "dim")
        q_top = ops.where(mask, q, 0.0)
        share = q_top.abs().sum("dim") / (q.abs().sum("dim") + 1e-6)
        tau = (ops.size("D") * share).sqrt()
        logits = (q_top * cache["keys"]).sum("dim") / tau
        probs = (logits - logits.max("page", "row")).exp()
        mass = probs.sum("row")
        mass = mass / mass.sum("page")
        return ops.topk(mass.mean("head"))
