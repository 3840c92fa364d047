from vortex_core import ops, register, vFlow


@register("mean_or_quantile_union")
class MeanOrQuantileUnion(vFlow):
    """Exploit and explore as two selections. The first goes by the heads' average of the mean logit, the second by the
    mean plus beta standard deviations, of the head that likes the page most.

    a = mean_h q.m;  b = max_h q.m + beta sqrt(D) sqrt(sum q^2 var / D);  topk(a, 40%) | topk(b, 60%)
    Tune: 1.8 in [0.8, 3.0]; 0.4 in [0.2, 0.8]
    """

    def create_cache(self, page):
        return {
            "mean": page.state(dim=page.head_dim, dtype="int8"),
            "var": page.state(dim=page.head_dim, dtype="fp8_e4m3"),
        }

    def forward_cache(self, page):
        return {"mean": page.k.mean("token"), "var": page.k.var("token")}

    def forward_indexer(self, q, cache):
        mu = q.dot(cache["mean"], "dim")
        s = q.square().dot(cache["var"], "dim").relu().sqrt()
        steady = ops.topk(mu.mean("head"), fraction=0.4)
        daring = ops.topk((mu + 1.8 * s).max("head"), fraction=0.6)
        return steady | daring
