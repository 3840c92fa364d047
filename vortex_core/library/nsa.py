from vortex_core import Knobs, ops, register, vFlow


@register("nsa")
class NSA(vFlow):
    """Native Sparse Attention's selection branch (Yuan et al., arXiv 2502.11089): attention over compressed
    blocks, summed over the blocks of a page and over the group's heads. Its learned compression is replaced
    by the mean, its blocks do not overlap (l = d = l'/4), and the compressed and sliding branches, which
    add to the output, are left out.

    score(page) = sum_h sum_row softmax_row(q_h . mean_{t in row} k_t / sqrt(D))
    """

    knobs = Knobs(page_size=64, budget="max(1024, length / 16)")

    def create_cache(self, page):
        return {"compressed": page.state(row=4, dim=page.head_dim)}

    def forward_cache(self, page):
        return {"compressed": page.k.split("token", row=4).mean("token")}

    def forward_indexer(self, q, cache):
        logits = (q * cache["compressed"]).sum("dim") / ops.size("D").sqrt()
        weight = (logits - logits.max("page", "row")).exp().sum("row")
        return ops.topk((weight / weight.sum("page")).sum("head"))
