from vortex_core import ops, register, vFlow


@register("gaussian_logsumexp")
class GaussianLogSumExp(vFlow):
    """Keys of a page as a diagonal Gaussian: log E[exp(q.k)] = q.mu + 0.5 q^2.var.

    score(page) = mean_h softmax_page(s q.mu + 0.5 s^2 sum_d q_d^2 var_d)
    """

    def create_cache(self, page):
        return {
            "mu": page.state(dim=page.head_dim, dtype="bf16"),
            "var": page.state(dim=page.head_dim, dtype="fp8_e4m3"),
        }

    def forward_cache(self, page):
        mu = page.k.mean("token")
        var = ((page.k - mu) ** 2).mean("token")
        return {"mu": mu, "var": var}

    def forward_indexer(self, q, cache):
        qs = q * ops.size("D") ** -0.5
        first = (qs * cache["mu"]).sum("dim")
        second = 0.5 * (qs * qs * cache["var"]).sum("dim")
        logits = first + second
        return ops.topk(logits.softmax("page").mean("head"))
