from vortex_core import ops, register, vFlow


@register("block_topk")
class BlockTopK(vFlow):
    """Block top-k: the query against the mean key of each page (MoBA, arXiv 2502.13189; InfLLM-style
    centroids).

    score(page) = mean_h q_h . mean_t k_t
    """

    def create_cache(self, page):
        return {"centroid": page.state(dim=page.head_dim)}

    def forward_cache(self, page):
        return {"centroid": page.k.mean("token")}

    def forward_indexer(self, q, cache):
        return ops.topk((q.mean("head") * cache["centroid"]).sum("dim"))
