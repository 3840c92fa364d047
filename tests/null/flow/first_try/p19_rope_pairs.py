from vortex_core import ops, register, vFlow


@register("rope_pairs")
class RopePairs(vFlow):
    """Upper bound per rotary pair: |q_pair| times the largest |k_pair| of the page.

    Pairs are (i, i + D/2); score = max_h sum_i |q_i| max_t |k_ti|
    """

    def create_cache(self, page):
        return {"radius": page.state(pair=page.head_dim // 2, dtype="fp8_e4m3")}

    def pairs(self, x):
        a = x.slice("dim", 0, "D/2").rename(dim="pair")
        b = x.slice("dim", "D/2", "D").rename(dim="pair")
        return (a**2 + b**2) ** 0.5

    def forward_cache(self, page):
        return {"radius": self.pairs(page.k).max("token")}

    def forward_indexer(self, q, cache):
        return ops.topk((self.pairs(q) * cache["radius"]).sum("pair").max("head"))
