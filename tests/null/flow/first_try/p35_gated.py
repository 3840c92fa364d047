from vortex_core import ops, register, vFlow


@register("learned_gate")
class LearnedGate(vFlow):
    """SeerAttention-style learned gate: pooled keys and query through small projections."""

    def create_cache(self, page):
        return {"z": page.state(rank=32, dtype="bf16")}

    def forward_cache(self, page):
        wk = ops.param("wk", rank=32, dim="D")
        wm = ops.param("wm", rank=32, dim="D")
        mean = (page.k.mean("token") * wk).sum("dim")
        peak = (page.k.max("token") * wm).sum("dim")
        return {"z": (mean + peak).tanh()}

    def forward_indexer(self, q, cache):
        wq = ops.param("wq", rank=32, dim="D")
        zq = (q.mean("head") * wq).sum("dim").silu()
        return ops.topk((zq * cache["z"]).sum("rank") * 32**-0.5)
