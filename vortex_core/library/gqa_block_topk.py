from vortex_core import ops, register, vFlow


@register("gqa_block_topk")
class GQABlockTopK(vFlow):
    """Block top-k for grouped queries: a softmax over pages per head, then the best head (NSA, arXiv
    2502.11089, as bundled with vortex_torch, arXiv 2606.06453).

    score(page) = max_h softmax_page(0.09 q_h . mean_t k_t)
    """

    def create_cache(self, page):
        return {"centroid": page.state(dim=page.head_dim)}

    def forward_cache(self, page):
        return {"centroid": page.k.mean("token")}

    def forward_indexer(self, q, cache):
        logits = 0.09 * (q * cache["centroid"]).sum("dim")
        return ops.topk(logits.softmax("page").max("head"))
