from vortex_core import ops, register, vFlow

LAYERS, KV_HEADS, RANK = 30, 3, 16  # of the model the weights are made for


@register("double_sparsity")
class DoubleSparsity(vFlow):
    """Double Sparsity (Yang et al., arXiv 2408.07092), page-relaxed: approximate attention from a few channels,
    chosen offline per layer and kv head, whose keys are kept again as 4-bit labels. Weights: `channels`, one row
    per label with a single 1, made by `python -m benchmarks.calibrate`.

    score(page) = mean_h sum_t softmax_t(sum_{c in channels} q_hc k_tc / sqrt(D))
    """

    def create_cache(self, page):
        return {"labels": page.state(row=page.size, rank=RANK, dtype="int4")}

    def forward_cache(self, page):
        channels = ops.param("channels", layer=LAYERS, kv_head=KV_HEADS, rank=RANK, dim="D")
        return {"labels": (page.k.rename(token="row") * channels).sum("dim")}

    def forward_indexer(self, q, cache):
        channels = ops.param("channels", layer=LAYERS, kv_head=KV_HEADS, rank=RANK, dim="D")
        logits = ((q * channels).sum("dim") * cache["labels"]).sum("rank") / ops.size("D").sqrt()
        weight = (logits - logits.max("page", "row")).exp().sum("row")
        return ops.topk((weight / weight.sum("page")).mean("head"))
