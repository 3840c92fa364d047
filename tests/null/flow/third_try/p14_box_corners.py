from vortex_core import ops, register, vFlow


@register("box_corners")
class BoxCorners(vFlow):
    """Every token as a corner of its page's box: sign bits around the mean, with a spread per channel.

    mu = mean_t k, b_t = sign(k_t - mu), a = mean_t |k_t - mu| (the least-squares step for those signs)
    logit_h,t = (q_h . mu + (q_h a) . b_t) / sqrt(D)
    score(page) = mean_h softmax_pages(logsumexp_t logit_h,t)
    """

    def create_cache(self, page):
        return {
            "mu": page.state(dim=page.head_dim, dtype="int4"),
            "step": page.state(dim=page.head_dim, dtype="int4"),
            "corner": page.state(row=page.size, dim=page.head_dim, dtype="bits"),
        }

    def forward_cache(self, page):
        mu = page.k.mean("token").to("int4", "dim")  # as it reads back
        rest = page.k - mu
        return {
            "mu": mu,
            "step": rest.abs().mean("token"),
            "corner": rest.rename(token="row").sign(),
        }

    def forward_indexer(self, q, cache):
        centre = q.dot(cache["mu"], "dim")  # (page, head)
        weighted = q * cache["step"]  # (page, head, dim)
        logits = (centre + weighted.dot(cache["corner"], "dim")) * ops.size("D") ** -0.5
        return ops.topk(logits.logsumexp("row").softmax("page").mean("head"))
