from vortex_core import Knobs, ops, register, vFlow


@register("lserve")
class LServe(vFlow):
    """LServe (Yang et al., arXiv 2502.14866): Quest's bound on logical sub-pages, the best one stands for
    the page; a selection is reused for 4 steps. Its streaming heads and quantised KV are the engine's
    business and left out.

    score(page) = max_h max_row sum_d max(q_hd kmax_row,d, q_hd kmin_row,d)
    """

    knobs = Knobs(page_size=64, budget="max(1024, length / 16)", reuse_steps=4, keep_last=2)

    def create_cache(self, page):
        return {"kmax": page.state(row=4, dim=page.head_dim), "kmin": page.state(row=4, dim=page.head_dim)}

    def forward_cache(self, page):
        rows = page.k.split("token", row=4)
        return {"kmax": rows.max("token"), "kmin": rows.min("token")}

    def forward_indexer(self, q, cache):
        bound = ops.maximum(q * cache["kmax"], q * cache["kmin"]).sum("dim")
        return ops.topk(bound.max("row", "head"))
