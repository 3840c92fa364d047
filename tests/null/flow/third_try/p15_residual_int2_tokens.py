from vortex_core import ops, register, vFlow


@register("residual_int2_tokens")
class ResidualInt2Tokens(vFlow):
    """Every key as the page's int4 mean plus a two-bit residual, one scale a token.

    logit_h,t = q_h . (mu4 + r2_t) / sqrt(D)
    score(page) = mean_h softmax_pages(logsumexp_t logit_h,t)
    """

    def create_cache(self, page):
        return {
            "mu": page.state(dim=page.head_dim, dtype="int4"),
            "rest": page.state(row=page.size, dim=page.head_dim, dtype="int2"),
        }

    def forward_cache(self, page):
        mu = page.k.mean("token").to("int4", "dim")
        return {"mu": mu, "rest": (page.k - mu).rename(token="row")}

    def forward_indexer(self, q, cache):
        centre = q.dot(cache["mu"], "dim")  # (page, head)
        logits = (centre + q.dot(cache["rest"], "dim")) * ops.size("D") ** -0.5  # (page, head, row)
        return ops.topk(logits.logsumexp("row").softmax("page").mean("head"))
