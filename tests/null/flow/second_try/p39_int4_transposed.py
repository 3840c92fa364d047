from vortex_core import ops, register, vFlow


@register("int4_by_channel")
class Int4ByChannel(vFlow):
    """Token keys in four bits with one scale for each channel of a page (KIVI: keys vary by channel)."""

    def create_cache(self, page):
        return {"k": page.state(dim=page.head_dim, row=page.size, dtype="int4")}

    def forward_cache(self, page):
        return {"k": page.k.rename(token="row")}

    def forward_indexer(self, q, cache):
        logits = q.dot(cache["k"], "dim") * ops.size("D") ** -0.5
        w = (logits - logits.max("page", "row")).exp().sum("row")
        return ops.topk((w / w.sum("page")).mean("head"))
