from vortex_core import ops, register, vFlow


@register("sparq_channels")
class SparqChannels(vFlow):
    """SparQ (arXiv 2312.04985): only the channels where the query is largest, on token keys."""

    def create_cache(self, page):
        return {"k": page.state(row=page.size, dim=page.head_dim, dtype="fp8_e4m3")}

    def forward_cache(self, page):
        return {"k": page.k.rename(token="row")}

    def forward_indexer(self, q, cache):
        mask = q.abs().largest(32, "dim")
        qs = ops.where(mask, q, 0.0)
        logits = qs.dot(cache["k"], "dim")
        kept = (qs.abs().sum("dim") / (q.abs().sum("dim") + 1e-6)).sqrt()
        logits = logits / (kept * ops.sqrt(ops.size("D")))
        return ops.topk(logits.softmax("page", "row").sum("row").mean("head"))
