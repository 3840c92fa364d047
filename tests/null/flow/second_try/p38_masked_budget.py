from vortex_core import ops, register, vFlow


@register("sink_aware")
class SinkAware(vFlow):
    """The sink's share is taken out before heads are averaged: a head that looks at sinks has no say."""

    def create_cache(self, page):
        return {"c": page.state(dim=page.head_dim)}

    def forward_cache(self, page):
        return {"c": page.k.mean("token")}

    def forward_indexer(self, q, cache):
        s = q.dot(cache["c"], "dim") * ops.size("D") ** -0.5
        p = s.softmax("page")
        early = ops.position() < 2
        sink = (p * early).sum("page")
        p = ops.where(early, 0.0, p)
        return ops.topk((p * (1 - sink)).mean("head"))
