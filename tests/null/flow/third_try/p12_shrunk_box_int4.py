from vortex_core import ops, register, vFlow


@register("shrunk_box_int4")
class ShrunkBoxInt4(vFlow):
    """Quest (arXiv 2406.10774) as centre and radius, the radius shrunk, int4.

    mid = (max_t k + min_t k) / 2, rad = (max_t k - min_t k) / 2
    score(page) = mean_h softmax_pages((q_h . mid + 0.3 |q_h| . rad) / sqrt(D))
    Tune: 0.3 in [0.05, 1.0]
    """

    def create_cache(self, page):
        return {
            "mid": page.state(dim=page.head_dim, dtype="int4"),
            "rad": page.state(dim=page.head_dim, dtype="int4"),
        }

    def forward_cache(self, page):
        high = page.k.max("token")
        low = page.k.min("token")
        return {"mid": 0.5 * (high + low), "rad": 0.5 * (high - low)}

    def forward_indexer(self, q, cache):
        bound = q.dot(cache["mid"], "dim") + 0.3 * q.abs().dot(cache["rad"], "dim")
        return ops.topk((bound * ops.size("D") ** -0.5).softmax("page").mean("head"))
