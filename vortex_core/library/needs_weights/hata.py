from vortex_core import ops, register, vFlow, vTensor

LAYERS, KV_HEADS, BITS = 30, 3, 128  # of the model the weights are made for


@register("hata")
class Hata(vFlow):
    """HATA (Gong et al., arXiv 2506.02572), page-relaxed: learned 128-bit codes of queries and keys, by one matrix for
    both; a page is as close as its closest token. Weights to be trained: `hash`.

    score(page) = max_t sum_h -hamming(sign(W q_h), sign(W k_t))
    """

    def create_cache(self, page):
        return {"codes": page.state(row=page.size, bit=BITS, dtype="bits")}

    def forward_cache(self, page):
        return {"codes": self.hashed(page.k.rename(token="row"))}

    def forward_indexer(self, q, cache):
        agree = self.hashed(q).sign().dot(cache["codes"], "bit")
        return ops.topk(agree.sum("head").max("row"))

    def hashed(self, x: vTensor) -> vTensor:
        return x.dot(ops.param("hash", layer=LAYERS, kv_head=KV_HEADS, bit=BITS, dim="D"), "dim")
