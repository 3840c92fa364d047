from vortex_core import Knobs, ops, register, vFlow


@register("slow_kascade16_1024_r4")
class Flow(vFlow):
    """Kascade's vote over int8 mean keys of slow channels, a quarter of its state; four layers share 1,024.

    score(page) = mean_h softmax_page(q_h . mean k / sqrt(D)), slow half of the rotary pairs
    """

    knobs = Knobs(page_size=16, budget="1024", keep_first=1, keep_last=4, reuse_layers=4)

    def slow(self, x):
        return ops.concat([x.slice("dim", "D/4", "D/2"), x.slice("dim", "3*D/4", "D")], "dim")

    def create_cache(self, page):
        return {"mean": page.state(dim="D/2", dtype="int8")}

    def forward_cache(self, page):
        return {"mean": self.slow(page.k).mean("token")}

    def forward_indexer(self, q, cache):
        logits = (self.slow(q) * cache["mean"]).sum("dim") / ops.size("D").sqrt()
        return ops.topk(logits.softmax("page").mean("head"))
