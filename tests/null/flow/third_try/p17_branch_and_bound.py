from vortex_core import ops, register, vFlow


@register("branch_and_bound")
class BranchAndBound(vFlow):
    """Pruning by intervals: pages whose (shrunk) upper bound reaches the best (shrunk) lower bound of any head.

    up = q . mid + 0.35 |q| . rad, low = q . mid - 0.1 |q| . rad, over sqrt(D)
    keep the page if max_h (up_h - max_{pages but the sink} low_h + 2.5) >= 0, best first within the budget
    Tune: 0.35 in [0.1, 1.0]; 0.1 in [-0.3, 0.5]; 2.5 in [0.0, 6.0]
    """

    def create_cache(self, page):
        return {
            "mid": page.state(dim=page.head_dim, dtype="int4"),
            "rad": page.state(dim=page.head_dim, dtype="int4"),
        }

    def forward_cache(self, page):
        high = page.k.max("token")
        low = page.k.min("token")
        return {"mid": 0.5 * (high + low), "rad": 0.5 * (high - low)}

    def forward_indexer(self, q, cache):
        scale = ops.size("D") ** -0.5
        centre = q.dot(cache["mid"], "dim") * scale
        width = q.abs().dot(cache["rad"], "dim") * scale
        upper = centre + 0.35 * width  # (page, head)
        lower = centre - 0.1 * width
        rival = ops.where(ops.position() < 1, -10000.0, lower).max("page")  # (head)
        return ops.threshold((upper - rival + 2.5).max("head"), 0.0)
