from vortex_core import Knobs, ops, register, vFlow


@register("shared_gqa")
class SharedGQA(vFlow):
    """One selection for all kv heads: pooled scores make fewer, longer reads."""

    knobs = Knobs(page_size=64, budget=1024)

    def create_cache(self, page):
        return {"kmax": page.state(row=4, dim=page.head_dim), "kmin": page.state(row=4, dim=page.head_dim)}

    def forward_cache(self, page):
        k = page.k.split("token", row=4)
        return {"kmax": k.max("token"), "kmin": k.min("token")}

    def forward_indexer(self, q, cache):
        s = ops.maximum(q * cache["kmax"], q * cache["kmin"]).sum("dim").max("row").max("head")
        return ops.topk(s, share="mean")
