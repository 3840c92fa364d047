from vortex_core import ops, register, vFlow, vTensor

LAYERS, KV_HEADS, PARTS, CODES = 30, 3, 2, 64  # of the model the weights are made for


@register("pqcache")
class PQCache(vFlow):
    """PQCache (Zhang et al., arXiv 2407.12820), page-relaxed: keys are replaced by product-quantisation codes, and
    attention is estimated from the codes' centroids. The original learns centroids from every prompt by k-means,
    which a flow cannot; here they are calibrated once per layer and kv head. Weights: `centroids`, made by
    `python -m benchmarks.calibrate`.

    score(page) = mean_h sum_t softmax_t(sum_m q_hm . C_m[code_tm] / sqrt(D)), code_tm = argmin_c |k_tm - C_mc|
    """

    def create_cache(self, page):
        return {"codes": page.state(row=page.size, part=PARTS, code=CODES, dtype="bits")}

    def forward_cache(self, page):
        parts = page.k.rename(token="row").split("dim", part=PARTS)
        centroids = self.centroids()
        norms = (centroids * centroids).sum("dim")
        closeness = (parts * centroids).sum("dim") - norms / 2  # the nearest centroid has the largest
        return {"codes": ops.where(closeness.largest(1, "code"), 1.0, -1.0)}

    def forward_indexer(self, q, cache):
        dots = (q.split("dim", part=PARTS) * self.centroids()).sum("dim")
        logits = ((cache["codes"] + 1) / 2 * dots).sum("part", "code") / ops.size("D").sqrt()
        weight = (logits - logits.max("page", "row")).exp().sum("row")
        return ops.topk((weight / weight.sum("page")).mean("head"))

    def centroids(self) -> vTensor:
        return ops.param("centroids", layer=LAYERS, kv_head=KV_HEADS, part=PARTS, code=CODES, dim="D/2")
