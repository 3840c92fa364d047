from vortex_core import ops, register, vFlow


@register("clipped_int2_residual")
class ClippedInt2Residual(vFlow):
    """Mean in int8, every token's deviation in int2. int2 reads back -3, -1, 1, 3 times a third of the largest value of its
    row; an outlier would waste these levels, so each row is clipped first at 1.5 times its own rms (Lloyd-Max).

    logit(h, t) = q_h . (m + r_t) / sqrt(D); score = max_h softmax_page logsumexp_t
    Tune: 1.5 in [1.1, 2.5]
    """

    def create_cache(self, page):
        return {
            "mean": page.state(dim=page.head_dim, dtype="int8"),
            "rest": page.state(row=page.size, dim=page.head_dim, dtype="int2"),
        }

    def forward_cache(self, page):
        mean = page.k.mean("token")
        rest = (page.k - mean).rename(token="row")
        edge = 1.5 * (rest.square().mean("dim") + 1e-8).sqrt()
        return {"mean": mean, "rest": ops.maximum(ops.minimum(rest, edge), -edge)}

    def forward_indexer(self, q, cache):
        scaled = q * ops.size("D") ** -0.5
        logits = scaled.dot(cache["rest"], "dim") + scaled.dot(cache["mean"], "dim")
        mass = logits.logsumexp("row")
        return ops.topk(mass.softmax("page").max("head"))
