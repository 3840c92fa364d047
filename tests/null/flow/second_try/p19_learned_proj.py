from vortex_core import ops, register, vFlow


@register("learned_gate")
class LearnedGate(vFlow):
    """SeerAttention-like: learned projections of query and pooled key, ranked by their product."""

    def create_cache(self, page):
        return {"z": page.state(rank=16, dtype="bf16")}

    def forward_cache(self, page):
        wk = ops.param("wk", rank=16, dim="D")
        return {"z": page.k.mean("token").dot(wk, "dim")}

    def forward_indexer(self, q, cache):
        wq = ops.param("wq", rank=16, dim="D")
        return ops.topk(q.dot(wq, "dim").dot(cache["z"], "rank").max("head"))
