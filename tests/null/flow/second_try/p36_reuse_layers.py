from vortex_core import Knobs, ops, register, vFlow


@register("kascade_quest")
class KascadeQuest(vFlow):
    """Kascade: groups of four layers share the leader's selection, which may then be costly and sharp."""

    knobs = Knobs(budget="256", reuse_layers=4, dense_layers=(0,))

    def create_cache(self, page):
        return {"k": page.state(row=page.size // 2, dim=page.head_dim, dtype="int4")}

    def forward_cache(self, page):
        pairs = page.k.split("token", row=page.size // 2).mean("token")
        return {"k": pairs}

    def forward_indexer(self, q, cache):
        s = q.dot(cache["k"], "dim") * ops.size("D") ** -0.5
        return ops.topk(s.softmax(["page", "row"]).sum("row").max("head"))
