from vortex_core import ops, register, vFlow


@register("consensus_or_specialist")
class ConsensusOrSpecialist(vFlow):
    """Union of two readings of the same int4 centroid.

    l_h(page) = q_h . mean_t k_t / sqrt(D)
    60%: mean_h softmax_pages(l_h); 40%: max_h (l_h - mean_pages l_h) / std_pages l_h
    Tune: 0.6 in [0.3, 0.8]
    """

    def create_cache(self, page):
        return {"c": page.state(dim=page.head_dim, dtype="int4")}

    def forward_cache(self, page):
        return {"c": page.k.mean("token")}

    def forward_indexer(self, q, cache):
        logits = q.dot(cache["c"], "dim") * ops.size("D") ** -0.5  # (page, head)
        consensus = logits.softmax("page").mean("head")
        standout = (logits - logits.mean("page")) / (logits.std("page") + 1e-6)
        first = ops.topk(consensus, fraction=0.6)
        second = ops.topk(standout.max("head"), fraction=0.4)
        return first | second
