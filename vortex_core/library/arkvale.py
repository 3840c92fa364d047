from vortex_core import ops, register, vFlow


@register("arkvale")
class ArkVale(vFlow):
    """ArkVale (Chen et al., NeurIPS 2024; not on arXiv): bounds q . k over a page by a ball around its mean
    key. Its offloading is left out; its other digest, the bounding box, gives Quest's score.

    score(page) = max_h q_h . c + |q_h| r, c = mean_t k_t, r = max_t |k_t - c|
    """

    def create_cache(self, page):
        return {"centre": page.state(dim=page.head_dim), "radius": page.state()}

    def forward_cache(self, page):
        centre = page.k.mean("token")
        return {"centre": centre, "radius": (page.k - centre).norm("dim").max("token")}

    def forward_indexer(self, q, cache):
        bound = (q * cache["centre"]).sum("dim") + q.norm("dim") * cache["radius"]
        return ops.topk(bound.max("head"))
