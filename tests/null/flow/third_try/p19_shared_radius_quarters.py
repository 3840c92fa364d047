from vortex_core import ops, register, vFlow


@register("shared_radius_quarters")
class SharedRadiusQuarters(vFlow):
    """Centres of four sub-pages, one common radius: a tight bound by parts.

    c_r = mean of quarter r, rad_d = max_r,t |k_rtd - c_rd|
    score(page) = mean_h softmax_pages(logsumexp_r(q_h . c_r s) + 0.2 |q_h| . rad s), s = 1 / sqrt(D)
    Tune: 0.2 in [0.0, 1.0]
    """

    def create_cache(self, page):
        return {
            "centre": page.state(row=4, dim=page.head_dim, dtype="int4"),
            "rad": page.state(dim=page.head_dim, dtype="int4"),
        }

    def forward_cache(self, page):
        parts = page.k.split("token", row=4)  # (row, token, dim)
        centre = parts.mean("token")
        return {"centre": centre, "rad": (parts - centre).abs().max("token", "row")}

    def forward_indexer(self, q, cache):
        scale = ops.size("D") ** -0.5
        middle = (q.dot(cache["centre"], "dim") * scale).logsumexp("row")  # (page, head)
        width = q.abs().dot(cache["rad"], "dim") * scale
        return ops.topk((middle + 0.2 * width).softmax("page").mean("head"))
