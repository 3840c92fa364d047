from vortex_core import ops, register, vFlow, vTensor

LAYERS, KV_HEADS, HIDDEN, BITS = 30, 3, 64, 32  # of the model the weights are made for


@register("hashattention")
class HashAttention(vFlow):
    """HashAttention (Desai et al., arXiv 2412.14468), page-relaxed: learned 32-bit signatures of queries and keys; a
    page is as close as its closest token. The original's three-layer networks are two layers here. Weights to be
    trained: `q1`, `q2`, `k1`, `k2`.

    score(page) = mean_h max_t -hamming(sign(f_q(q_h)), sign(f_k(k_t))), f(x) = W2 silu(W1 x)
    """

    def create_cache(self, page):
        return {"signatures": page.state(row=page.size, bit=BITS, dtype="bits")}

    def forward_cache(self, page):
        return {"signatures": self.network("k", page.k.rename(token="row"))}

    def forward_indexer(self, q, cache):
        agree = (self.network("q", q).sign() * cache["signatures"]).sum("bit")
        return ops.topk(agree.max("row").mean("head"))

    def network(self, side: str, x: vTensor) -> vTensor:
        first = ops.param(f"{side}1", layer=LAYERS, kv_head=KV_HEADS, hidden=HIDDEN, dim="D")
        second = ops.param(f"{side}2", layer=LAYERS, kv_head=KV_HEADS, bit=BITS, hidden=HIDDEN)
        return ((x * first).sum("dim").silu() * second).sum("hidden")
