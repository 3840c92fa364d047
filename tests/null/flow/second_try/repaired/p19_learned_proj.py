from vortex_core import ops, register, vFlow


@register("learned_gate")
class LearnedGate(vFlow):
    """SeerAttention-like: learned projections of query and pooled key, ranked by their product."""

    def create_cache(self, page):
        return {"z": page.state(rank=16, dtype="bf16")}

    def forward_cache(self, page):
        wk = ops.signs(rank=16, dim="D", seed=226)
        return {"z": page.k.mean("token").dot(wk, "dim")}

    def forward_indexer(self, q, cache):
        wq = ops.signs(rank=16, dim="D", seed=226)
        return ops.topk(q.dot(wq, "dim").dot(cache["z"], "rank").max("head"))
