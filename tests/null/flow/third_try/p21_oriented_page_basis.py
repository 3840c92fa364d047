from vortex_core import ops, register, vFlow


@register("oriented_page_basis")
class OrientedPageBasis(vFlow):
    """Page-local principal directions instead of channel extrema: rank three, every token's coefficients.

    k_t ~ mu + sum_i a_i,t u_i, u_i by power iteration with deflation when the page is complete
    logit_h,t = (q_h . mu + sum_i (q_h . u_i) a_i,t) / sqrt(D)
    score(page) = mean_h softmax_pages(logsumexp_t logit_h,t)
    """

    def leading(self, rest):
        start = rest.square().sum("dim").argmax("token")
        u = rest.take(start, "token").normalize("dim")  # (dim)
        for _ in range(5):
            u = rest.dot(rest.dot(u, "dim"), "token").normalize("dim")
        return u

    def create_cache(self, page):
        states = {"mu": page.state(dim=page.head_dim, dtype="int4")}
        for i in range(3):
            states["u" + str(i)] = page.state(dim=page.head_dim, dtype="int4")
            states["a" + str(i)] = page.state(row=page.size, dtype="int4")
        return states

    def forward_cache(self, page):
        mu = page.k.mean("token").to("int4", "dim")
        rest = page.k - mu  # (token, dim)
        out = {"mu": mu}
        for i in range(3):
            u = self.leading(rest).to("int4", "dim")
            a = rest.dot(u, "dim") / (u.square().sum("dim") + 1e-6)  # (token)
            out["u" + str(i)] = u
            out["a" + str(i)] = a.rename(token="row")
            rest = rest - a * u
        return out

    def forward_indexer(self, q, cache):
        logits = q.dot(cache["mu"], "dim")  # (page, head)
        for i in range(3):
            logits = logits + q.dot(cache["u" + str(i)], "dim") * cache["a" + str(i)]  # (page, head, row)
        logits = logits * ops.size("D") ** -0.5
        return ops.topk(logits.logsumexp("row").softmax("page").mean("head"))
