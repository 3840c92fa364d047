from vortex_core import ops, register, vFlow

RANK = 16


@register("low_rank")
class LowRank(vFlow):
    """Keys in a learned basis of rank 16 (Loki), every token."""

    def create_cache(self, page):
        return {"z": page.state(row=page.size, rank=RANK, dtype="fp8_e4m3")}

    def forward_cache(self, page):
        basis = ops.param("basis", rank=RANK, dim="D")
        z = ops.dot(page.k, basis, "dim")
        return {"z": z.rename(token="row")}

    def forward_indexer(self, q, cache):
        basis = ops.param("basis", rank=RANK, dim="D")
        zq = ops.dot(q, basis, "dim") * ops.size("D") ** -0.5
        logits = ops.dot(zq, cache["z"], "rank")
        score = logits.softmax("row").max("row") * logits.max("row")
        return ops.topk(score.mean("head"))
