from vortex_core import Knobs, ops, register, vFlow, vTensor


@register("adamas")
class Adamas(vFlow):
    """Adamas (Yan et al., arXiv 2510.18413), page-relaxed: queries and keys turned by a Hadamard matrix, each channel
    in two bits; a page is as close as its closest token. Differs: blocks of 16 channels are turned, and the bounds
    between codes, -1, 0 and 1 standard deviations, are those of each token and query instead of the whole cache.

    score(page) = max_h max_t -sum_d abs(code(H q_h)_d - code(H k_t)_d),  code(x) = -3, -1, 1 or 3
    """

    knobs = Knobs(dense_layers=(0, 1))

    def create_cache(self, page):
        bits = {"row": page.size, "block": page.head_dim // 16, "code": 16, "dtype": "bits"}
        return {"sign": page.state(**bits), "far": page.state(**bits)}

    def forward_cache(self, page):
        turned = self.turned(page.k.rename(token="row"))
        return {"sign": turned, "far": turned.abs() - 1}

    def forward_indexer(self, q, cache):
        turned = self.turned(q)
        code = turned.sign() * (2 + (turned.abs() - 1).sign())
        gap = (code - cache["sign"] * (2 + cache["far"])).abs().sum("block", "code")
        return ops.topk((-gap).max("row", "head"))

    def turned(self, x: vTensor) -> vTensor:
        parts = x.split("dim", block=x.size("dim") // 16).dot(ops.hadamard(code=16, dim=16), "dim")
        return parts / ((parts * parts).mean("block", "code").sqrt() + 1e-6)
