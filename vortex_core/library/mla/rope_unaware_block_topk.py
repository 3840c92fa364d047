from vortex_core import ops, register, vFlow


@register("rope_unaware_block_topk")
class RopeUnawareBlockTopK(vFlow):
    """Block top-k on the latent alone, rotary channels ignored (bundled with vortex_torch, arXiv
    2606.06453). MLA models only. With the rotary channels it is block_topk, the rope_aware_block_sparse_mla
    of that system.

    score(page) = mean_h q_h,nope . mean_t c_t
    """

    def create_cache(self, page):
        return {"centroid": page.state(dim=page.nope_dim)}

    def forward_cache(self, page):
        return {"centroid": page.k.mean("token").channels("nope")}

    def forward_indexer(self, q, cache):
        return ops.topk((q.mean("head").channels("nope") * cache["centroid"]).sum("dim"))
