from vortex_core import ops, register, vFlow


@register("trimmed_extrema")
class TrimmedExtrema(vFlow):
    """Soft extrema: means of the four largest and the four smallest values of every channel, int4.

    hi_d = mean of top 4 over t of k_td, lo_d = mean of bottom 4
    score(page) = mean_h softmax_pages(sum_d max(q_hd hi_d, q_hd lo_d) / sqrt(D))
    Tune: 4 in [2, 8]
    """

    def create_cache(self, page):
        return {
            "hi": page.state(dim=page.head_dim, dtype="int4"),
            "lo": page.state(dim=page.head_dim, dtype="int4"),
        }

    def forward_cache(self, page):
        top = page.k.largest(4, "token")
        bottom = (-page.k).largest(4, "token")
        return {
            "hi": ops.where(top, page.k, 0.0).sum("token") / 4.0,
            "lo": ops.where(bottom, page.k, 0.0).sum("token") / 4.0,
        }

    def forward_indexer(self, q, cache):
        # max(q hi, q lo) with hi >= lo: two contractions, by the sign of q.
        bound = q.relu().dot(cache["hi"], "dim") - (-q).relu().dot(cache["lo"], "dim")
        return ops.topk((bound * ops.size("D") ** -0.5).softmax("page").mean("head"))
