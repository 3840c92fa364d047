from vortex_core import ops, register, vFlow, vTensor

LAYERS, KV_HEADS, RANK = 30, 3, 32  # of the model the weights are made for


@register("seerattention")
class SeerAttention(vFlow):
    """SeerAttention-R's gate (Gao et al., arXiv 2506.08889; SeerAttention, arXiv 2410.13276): a learned projection of
    the group's queries against a learned projection of pooled keys. The original pools keys before rotation and
    rotates the gate itself; a flow sees rotated keys. Weights to be trained by distilling attention: `wq`, `wmax`,
    `wmin`, `wmean`.

    score(page) = (sum_h Wq_h q_h) . (Wmax max_t k_t + Wmin min_t k_t + Wmean mean_t k_t)
    """

    def create_cache(self, page):
        return {"gate": page.state(rank=RANK)}

    def forward_cache(self, page):
        pooled = {"wmax": page.k.max("token"), "wmin": page.k.min("token"), "wmean": page.k.mean("token")}
        return {"gate": sum(self.project(name, keys) for name, keys in pooled.items())}

    def forward_indexer(self, q, cache):
        w = ops.param("wq", layer=LAYERS, kv_head=KV_HEADS, head="G", rank=RANK, dim="D")
        return ops.topk(((q * w).sum("head", "dim") * cache["gate"]).sum("rank"))

    def project(self, name: str, keys: vTensor) -> vTensor:
        w = ops.param(name, layer=LAYERS, kv_head=KV_HEADS, rank=RANK, dim="D")
        return (keys * w).sum("dim")
