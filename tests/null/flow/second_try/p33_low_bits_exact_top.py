from vortex_core import ops, register, vFlow


@register("int8_tokens_logsum")
class Int8TokensLogsum(vFlow):
    """Token keys in int8 with a scale per token, over the unrotated channels only."""

    def create_cache(self, page):
        return {"k": page.state(row="S", dim="D", dtype="int8")}

    def forward_cache(self, page):
        return {"k": page.k.rename(token="row")}

    def forward_indexer(self, q, cache):
        logits = q.dot(cache["k"], "dim") * ops.size("D") ** -0.5
        return ops.topp(logits.logsumexp("row").mean("head"), p=0.95)
