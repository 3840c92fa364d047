from vortex_core import ops, register, vFlow


@register("value_energy")
class ValueEnergy(vFlow):
    """Block top-k gated by how large the page's values are (bundled with vortex_torch, arXiv 2606.06453).

    score(page) = (mean_h q_h . mean_t k_t) mean_t |v_t|
    """

    def create_cache(self, page):
        return {"centroid": page.state(dim=page.head_dim), "energy": page.state()}

    def forward_cache(self, page):
        return {"centroid": page.k.mean("token"), "energy": page.v.norm("dim").mean("token")}

    def forward_indexer(self, q, cache):
        return ops.topk((q.mean("head") * cache["centroid"]).sum("dim") * cache["energy"])
