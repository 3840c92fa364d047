from vortex_core import Knobs, ops, register, vFlow


@register("infllm")
class InfLLM(vFlow):
    """InfLLM (Xiao et al., arXiv 2402.04617), page-relaxed: a block is scored by a few representative keys;
    the score is linear in them, so their sum is all the state it needs. One choice for all kv heads. The
    original takes the keys its local window attended to most, which a flow does not see; here they are the
    4 of smallest norm, which tend to receive the most attention (Devoto et al., arXiv 2406.11430). Its
    position override and offloading are left out.

    score(page) = mean over all heads of q_h . sum_{t in representatives} k_t
    """

    knobs = Knobs(page_size=64, budget="max(1024, length / 16)")

    def create_cache(self, page):
        return {"representatives": page.state(dim=page.head_dim)}

    def forward_cache(self, page):
        chosen = (-page.k.norm("dim")).largest(4, "token")
        return {"representatives": ops.where(chosen, page.k, 0.0).sum("token")}

    def forward_indexer(self, q, cache):
        return ops.topk((q.mean("head") * cache["representatives"]).sum("dim"), share="mean")
