"""LOCKS."""

from vortex_core import ops, register, vFlow


@register("locks")
class Locks(vFlow):
    """LOCKS (package locks-kv 0.1.4; not on arXiv): a key by its coordinates in 8 principal directions of its page.

    score(page) = sum_h m_h(page) / max_page m_h,  m_h(page) = sum_t exp(q_h . (mean k + B c_t) / sqrt(D))
    with B the 8 leading directions of the centred keys and c_t the coordinates of key t in them.
    Differs: scales are fp16 for all three states, and the query is not rounded.
    """

    def create_cache(self, page):
        return {
            "mean": page.state(dim=page.head_dim, dtype="int8"),
            "basis": page.state(rank=8, dim=page.head_dim, dtype="int4"),
            "at": page.state(row=page.size, rank=8, dtype="int8"),
        }

    def forward_cache(self, page):
        mean = page.k.mean("token")
        spread = (page.k - mean).rename(token="row")
        basis = spread.principal("row", "dim", rank=8)
        return {"mean": mean, "basis": basis, "at": spread.dot(basis, "dim")}

    def forward_indexer(self, q, cache):
        turned = q.dot(cache["basis"], "dim")
        logits = turned.dot(cache["at"], "rank") + q.dot(cache["mean"], "dim")
        mass = (logits * ops.size("D") ** -0.5).logsumexp("row")
        return ops.topk((mass - mass.max("page")).exp().sum("head"))
