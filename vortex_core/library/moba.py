from vortex_core import Knobs, ops, register, vFlow


@register("moba")
class MoBA(vFlow):
    """MoBA (Lu et al., arXiv 2502.13189): every query head routes to blocks by their mean key; the current
    block is always attended. MoBA trains with this routing; here it is applied to a model trained with
    dense attention.

    score(page, h) = q_h . mean_t k_t
    """

    knobs = Knobs(page_size=128, budget="max(1024, length / 8)", keep_first=0, keep_last=1)

    def create_cache(self, page):
        return {"centroid": page.state(dim=page.head_dim)}

    def forward_cache(self, page):
        return {"centroid": page.k.mean("token")}

    def forward_indexer(self, q, cache):
        return ops.topk((q * cache["centroid"]).sum("dim"))
