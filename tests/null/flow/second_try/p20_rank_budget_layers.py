from vortex_core import Knobs, ops, register, vFlow


@register("layered_budget_quest")
class LayeredBudgetQuest(vFlow):
    """Early layers spread their attention: they get twice the budget; two first layers stay dense."""

    knobs = Knobs(
        page_size=32,
        budget="1024 if layer < layers / 4 else max(256, 32 * log2(length))",
        dense_layers=(0, 1),
        keep_first=1,
        keep_last=2,
    )

    def create_cache(self, page):
        return {
            "kmax": page.state(dim=page.head_dim, dtype="fp8_e4m3"),
            "kmin": page.state(dim=page.head_dim, dtype="fp8_e4m3"),
        }

    def forward_cache(self, page):
        return {"kmax": page.k.max("token"), "kmin": page.k.min("token")}

    def forward_indexer(self, q, cache):
        return ops.topk(ops.maximum(q * cache["kmax"], q * cache["kmin"]).sum("dim").mean("head"))
