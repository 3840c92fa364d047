import math

from vortex_core import ops, register, vFlow


@register("page_lse_softmax")
class PageLSE(vFlow):
    """Second-order estimate of the page's log-sum-exp, softmaxed over pages per head and averaged."""

    def create_cache(self, page):
        return {
            "mu": page.state(dim=page.head_dim),
            "cov": page.state(dim=page.head_dim, dtype="int8"),
        }

    def forward_cache(self, page):
        mu = page.k.mean("token")
        return {"mu": mu, "cov": (page.k - mu).square().mean("token")}

    def forward_indexer(self, q, cache):
        s = 1.0 / math.sqrt(ops.size("D"))
        first = (q * cache["mu"]).sum("dim") * s
        second = 0.5 * s * s * (q * q * cache["cov"]).sum("dim")
        prob = (first + second).softmax("page")
        return ops.topk(prob.mean("head"))
