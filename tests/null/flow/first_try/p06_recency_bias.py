from vortex_core import Knobs, ops, register, vFlow


@register("recency_bias")
class RecencyBias(vFlow):
    """Centroid score with an ALiBi-like penalty by distance from the end of the sequence."""

    knobs = Knobs(keep_first=1, keep_last=4)

    def create_cache(self, page):
        return {"mean": page.state(dim=page.head_dim)}

    def forward_cache(self, page):
        return {"mean": page.k.mean("token")}

    def forward_indexer(self, q, cache):
        score = q.dot(cache["mean"], "dim") * q.size("dim") ** -0.5
        age = (ops.pages() - 1 - ops.position()) / ops.pages()
        score = score - 0.5 * age.pow(0.5)
        return ops.topk(score.max("head"))
