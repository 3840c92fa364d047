from vortex_core import ops, register, vFlow


@register("masked_quest")
class MaskedQuest(vFlow):
    """Quest (arXiv 2406.10774) without the first 8 channels, the fastest rotating ones (bundled with
    vortex_torch, arXiv 2606.06453).

    score(page) = max_h sum_{d >= 8} max(q_hd kmax_d, q_hd kmin_d)
    """

    def create_cache(self, page):
        return {"kmax": page.state(dim=page.head_dim), "kmin": page.state(dim=page.head_dim)}

    def forward_cache(self, page):
        return {"kmax": page.k.max("token"), "kmin": page.k.min("token")}

    def forward_indexer(self, q, cache):
        q = q * ops.where(ops.arange(dim="D") < 8, 0.0, 1.0)
        bound = ops.maximum(q * cache["kmax"], q * cache["kmin"]).sum("dim")
        return ops.topk(bound.max("head"))
