from vortex_core import Knobs, ops, register, vFlow


@register("per_head_quest")
class PerHeadQuest(vFlow):
    """Quest with a selection of its own for each query head."""

    knobs = Knobs(budget="128", keep_first=1, keep_last=2)

    def create_cache(self, page):
        return {"kmax": page.state(dim=page.head_dim), "kmin": page.state(dim=page.head_dim)}

    def forward_cache(self, page):
        return {"kmax": page.k.amax("token"), "kmin": page.k.amin("token")}

    def forward_indexer(self, q, cache):
        return ops.topk(ops.maximum(q * cache["kmax"], q * cache["kmin"]).sum("dim"))
