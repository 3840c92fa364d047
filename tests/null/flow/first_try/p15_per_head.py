from vortex_core import ops, register, vFlow


@register("per_head_quest")
class PerHeadQuest(vFlow):
    """Each query head selects for itself by Quest's bound."""

    def create_cache(self, page):
        return {
            "hi": page.state(dim=page.head_dim, dtype="int8"),
            "lo": page.state(dim=page.head_dim, dtype="int8"),
        }

    def forward_cache(self, page):
        return {"hi": page.k.max("token"), "lo": page.k.min("token")}

    def forward_indexer(self, q, cache):
        score = (q.relu() * cache["hi"] - (-q).relu() * cache["lo"]).sum("dim")
        return ops.topk(score)
