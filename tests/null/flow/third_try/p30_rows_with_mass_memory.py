from vortex_core import ops, register, vFlow


@register("rows_with_mass_memory")
class RowsWithMassMemory(vFlow):
    """Sub-page means explore, exact attention probabilities exploit. The memory decays, so that a page whose topic has
    passed gives its place back (heavy hitters: H2O, arXiv 2306.14048, but without eviction).

    m(page) <- 0.7 m(page) + 0.3 max_h mass(page, h)
    score = mean_h softmax_page(max_r q_h . c_r / sqrt(D)) + beta m
    Tune: 0.7 in [0.3, 0.95]; 0.5 in [0.1, 2.0]
    """

    def create_cache(self, page):
        return {
            "centre": page.state(row=4, dim=page.head_dim, dtype="int4"),
            "memory": page.state(carried=True, init=0.0, dtype="fp32"),
        }

    def forward_cache(self, page):
        return {"centre": page.k.split("token", row=4).mean("token")}

    def forward_indexer(self, q, cache):
        logits = (q * ops.size("D") ** -0.5).dot(cache["centre"], "dim").max("row")
        guess = logits.softmax("page").mean("head")
        memory = 0.7 * cache["memory"] + 0.3 * ops.mass().max("head")
        cache["memory"] = memory
        return ops.topk(guess + 0.5 * memory)
