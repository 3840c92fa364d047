import math

from vortex_core import ops, register, vFlow


@register("qjl_quarters")
class QjlQuarters(vFlow):
    """QJL (Zandieh et al., arXiv 2406.03482) on the means of quarter pages.

    c_r = mean of quarter r, b_r = sign(S c_r) (64 bits), n_r = |c_r|
    q . c_r ~ sqrt(pi / 2) / 64 * n_r * (S q) . b_r, unbiased over the random signs S
    score(page) = mean_h softmax_pages(logsumexp_r(q_h . c_r / sqrt(D)))
    """

    def create_cache(self, page):
        return {
            "code": page.state(row=4, bit=64, dtype="bits"),
            "size": page.state(row=4, dtype="bf16"),
        }

    def forward_cache(self, page):
        quarter = page.k.split("token", row=4).mean("token")  # (row, dim)
        return {
            "code": quarter.dot(ops.signs(bit=64, dim="D"), "dim").sign(),
            "size": quarter.norm("dim"),
        }

    def forward_indexer(self, q, cache):
        sketch = q.dot(ops.signs(bit=64, dim="D"), "dim")  # (head, bit)
        dots = sketch.dot(cache["code"], "bit") * cache["size"]  # (page, head, row)
        logits = dots * (math.sqrt(math.pi / 2.0) / 64.0 * ops.size("D") ** -0.5)
        return ops.topk(logits.logsumexp("row").softmax("page").mean("head"))
