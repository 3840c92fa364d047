from vortex_core import ops, register, vFlow


@register("length_temperature")
class LengthTemperature(vFlow):
    """The longer the context, the sharper the head mix: temperature falls with the log of the length."""

    def create_cache(self, page):
        return {"c": page.state(row=2, dim=page.head_dim, dtype="int8")}

    def forward_cache(self, page):
        return {"c": page.k.split("token", row=2).mean("token")}

    def forward_indexer(self, q, cache):
        temp = 1 + (ops.length() / 1024).log() / 8
        s = q.dot(cache["c"], "dim").logsumexp("row") * ops.size("D") ** -0.5
        p = (s * temp).softmax("page")
        return ops.topk(p.max("head"))
