from vortex_core import ops, register, vFlow

LAYERS, KV_HEADS, RANK = 30, 3, 16  # of the model the weights are made for


@register("loki")
class Loki(vFlow):
    """Loki (Singhania et al., arXiv 2406.02542), page-relaxed: approximate attention in the leading principal
    components of the keys, calibrated per layer and kv head, at token resolution, summed per page. Weights:
    `components`, made by `python -m benchmarks.calibrate`.

    score(page) = mean_h sum_t softmax_t((R q_h) . (R k_t) / sqrt(D)), R the first RANK components
    """

    def create_cache(self, page):
        return {"keys": page.state(row=page.size, rank=RANK)}

    def forward_cache(self, page):
        components = ops.param("components", layer=LAYERS, kv_head=KV_HEADS, rank=RANK, dim="D")
        return {"keys": (page.k.rename(token="row") * components).sum("dim")}

    def forward_indexer(self, q, cache):
        components = ops.param("components", layer=LAYERS, kv_head=KV_HEADS, rank=RANK, dim="D")
        logits = ((q * components).sum("dim") * cache["keys"]).sum("rank") / ops.size("D").sqrt()
        weight = (logits - logits.max("page", "row")).exp().sum("row")
        return ops.topk((weight / weight.sum("page")).mean("head"))
