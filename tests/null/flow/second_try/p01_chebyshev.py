from vortex_core import Knobs, ops, register, vFlow


@register("chebyshev_page")
class ChebyshevPage(vFlow):
    """Mean logit plus a multiple of the diagonal standard deviation of the keys in the page.

    score(page) = max_h (q_h . mu + 1.5 sqrt(sum_d q_hd^2 var_d)) / sqrt(D)
    """

    knobs = Knobs(budget="384")

    def create_cache(self, page):
        return {
            "mu": page.state(dim=page.head_dim, dtype="bf16"),
            "var": page.state(dim=page.head_dim, dtype="fp8_e4m3"),
        }

    def forward_cache(self, page):
        return {"mu": page.k.mean("token"), "var": page.k.var("token")}

    def forward_indexer(self, q, cache):
        scale = page_scale = ops.size("D") ** -0.5
        mean = q.dot(cache["mu"], "dim") * scale
        spread = (q.square() * cache["var"]).sum("dim").sqrt() * page_scale
        return ops.topk((mean + 1.5 * spread).max("head"))
