from vortex_core import ops, register, vFlow


@register("subpage_quest")
class SubpageQuest(vFlow):
    """Quest bounds on quarter pages in int8: tighter boxes, scored by the best quarter."""

    def create_cache(self, page):
        return {
            "hi": page.state(row=4, dim=page.head_dim, dtype="int8"),
            "lo": page.state(row=4, dim=page.head_dim, dtype="int8"),
        }

    def forward_cache(self, page):
        k = page.k.split("token", row=4)
        return {"hi": k.max("token"), "lo": k.min("token")}

    def forward_indexer(self, q, cache):
        bound = ops.maximum(q * cache["hi"], q * cache["lo"]).sum("dim")  # (page, head, row)
        return ops.topk(bound.max("row").max("head"))
