from vortex_core import Knobs, ops, register, vFlow


@register("scaled_quest")
class ScaledQuest(vFlow):
    """Quest bound turned into a softmax over pages per head, then averaged over the group.

    score(page) = mean_h softmax_page( D^-0.5 * sum_d max(q kmax, q kmin) )
    """

    knobs = Knobs(page_size=16, budget="max(256, length / 16)")

    def create_cache(self, page):
        return {
            "kmax": page.state(dim=page.head_dim, dtype="fp8_e4m3"),
            "kmin": page.state(dim=page.head_dim, dtype="fp8_e4m3"),
        }

    def forward_cache(self, page):
        return {"kmax": page.k.amax("token"), "kmin": page.k.amin("token")}

    def forward_indexer(self, q, cache):
        scale = ops.size("D") ** -0.5
        upper = ops.maximum(q * cache["kmax"], q * cache["kmin"]).sum("dim") * scale
        probs = upper.softmax("page")
        return ops.topk(probs.mean("head"))
