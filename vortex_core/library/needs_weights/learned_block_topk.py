from vortex_core import ops, register, vFlow

LAYERS, KV_HEADS, RANK = 30, 3, 8  # of the model the weights are made for


@register("learned_block_topk")
class LearnedBlockTopK(vFlow):
    """Block top-k through a trained bilinear form of low rank, per layer and query head (the learned MLA flows of
    vortex_torch, arXiv 2606.06453). Weights to be trained: `wq`, `wk`.

    score(page) = sum_h (Wq_h q_h) . (Wk_h mean_t k_t)
    """

    def create_cache(self, page):
        return {"centroid": page.state(dim=page.head_dim)}

    def forward_cache(self, page):
        return {"centroid": page.k.mean("token")}

    def forward_indexer(self, q, cache):
        wq = ops.param("wq", layer=LAYERS, kv_head=KV_HEADS, head="G", rank=RANK, dim="D")
        wk = ops.param("wk", layer=LAYERS, kv_head=KV_HEADS, head="G", rank=RANK, dim="D")
        transformed = ((q * wq).sum("dim") * wk).sum("head", "rank")
        return ops.topk((transformed * cache["centroid"]).sum("dim"))
