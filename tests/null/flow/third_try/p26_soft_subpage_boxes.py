from vortex_core import ops, register, vFlow


@register("soft_subpage_boxes")
class SoftSubpageBoxes(vFlow):
    """Quest (arXiv 2406.10774) on sub-pages of a quarter of the page, each box as centre and half width in few bits. The
    full half width is a bound no token reaches; a fraction of it is near the expected best token.

    score = max_h max_r (q_h.c_r + beta |q_h|.w_r) / |q_h|_1-free, beta = 0.35
    Tune: 0.35 in [0.05, 1.0]
    """

    def create_cache(self, page):
        return {
            "centre": page.state(row=4, dim=page.head_dim, dtype="int4"),
            "width": page.state(row=4, dim=page.head_dim, dtype="int3"),
        }

    def forward_cache(self, page):
        rows = page.k.split("token", row=4)
        high = rows.max("token")
        low = rows.min("token")
        return {"centre": 0.5 * (high + low), "width": 0.5 * (high - low)}

    def forward_indexer(self, q, cache):
        reach = q.dot(cache["centre"], "dim") + 0.35 * q.abs().dot(cache["width"], "dim")
        return ops.topk(reach.max("row").max("head"))
