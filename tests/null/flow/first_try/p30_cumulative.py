from vortex_core import Knobs, ops, register, vFlow


@register("cumulative")
class Cumulative(vFlow):
    """Novelty: the score of a page less the mean of all pages before it."""

    knobs = Knobs(keep_first=2, keep_last=2, budget="max(256, min(1024, length / 16))")

    def create_cache(self, page):
        return {"mean": page.state(dim=page.head_dim, dtype="bf16")}

    def forward_cache(self, page):
        return {"mean": page.k.mean("token")}

    def forward_indexer(self, q, cache):
        s = (q * cache["mean"]).sum("dim").max("head")
        running = s.cumsum("page") / (ops.position() + 1)
        return ops.topk(s - 0.3 * running)
