from vortex_core import ops, register, vFlow


@register("centred_sign_tokens")
class CentredSignTokens(vFlow):
    """Each token is approximated as mean + a_t * sign(k_t - mean), a_t = mean_d |k_td - mean_d| (the least-squares
    magnitude of a sign code, as in XNOR-Net, arXiv 1603.05279). A page counts by its estimated attention mass.

    logit(h, t) = (q_h . m + a_t q_h . b_t) / sqrt(D); score = mean_h softmax_page(logsumexp_t logit)
    Tune: 1.0 in [0.5, 1.5]
    """

    def create_cache(self, page):
        return {
            "mean": page.state(dim=page.head_dim, dtype="int8"),
            "bit": page.state(row=page.size, dim=page.head_dim, dtype="bits"),
            "amp": page.state(row=page.size, dtype="fp8_e4m3"),
        }

    def forward_cache(self, page):
        mean = page.k.mean("token")
        rest = (page.k - mean).rename(token="row")
        return {"mean": mean, "bit": rest, "amp": rest.abs().mean("dim")}

    def forward_indexer(self, q, cache):
        scaled = q * ops.size("D") ** -0.5
        base = scaled.dot(cache["mean"], "dim")
        fine = scaled.dot(cache["bit"], "dim") * cache["amp"]
        logits = base + 1.0 * fine
        mass = logits.logsumexp("row")
        return ops.topk(mass.softmax("page").mean("head"))
