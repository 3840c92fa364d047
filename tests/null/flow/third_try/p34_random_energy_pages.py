import math

from vortex_core import ops, register, vFlow


@register("random_energy_pages")
class RandomEnergyPages(vFlow):
    """Logits of a page's S tokens as S draws of N(mu, s^2). Derrida's random energy model gives the log of their mean exp:
    mu + s^2 / 2 up to s = c, and mu + s c - c^2 / 2 above it, c = sqrt(2 log S).

    mu = q.m / sqrt(D), s^2 = sum_d q_d^2 var_d / D; score = mean_h softmax_page(mu + free(s))
    Tune: 2.35 in [0.8, 3.0]; 1.0 in [0.5, 2.0]
    """

    def create_cache(self, page):
        return {
            "mean": page.state(dim=page.head_dim, dtype="int8"),
            "var": page.state(dim=page.head_dim, dtype="fp8_e4m3"),
        }

    def forward_cache(self, page):
        return {"mean": page.k.mean("token"), "var": page.k.var("token")}

    def forward_indexer(self, q, cache):
        edge = 2.35
        scaled = q * ops.size("D") ** -0.5
        mu = scaled.dot(cache["mean"], "dim")
        s = (1.0 * scaled.square().dot(cache["var"], "dim")).relu().sqrt()
        cold = ops.minimum(s, edge)
        free = 0.5 * cold * cold + edge * (s - cold)
        return ops.topk((mu + free).softmax("page").mean("head"))
