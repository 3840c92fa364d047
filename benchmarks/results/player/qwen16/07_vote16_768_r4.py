from vortex_core import Knobs, ops, register, vFlow


@register("vote16_768_r4")
class Flow(vFlow):
    """Best vote plus mean vote of heads over centre and half spread of 16-token pages; four layers share 768.

    score(page) = max_h v_h + mean_h v_h, v_h = softmax_page(s_h / sqrt(D)),
    s_h = q_h . mean k + |q_h| . std k / 2, slow half of the rotary pairs
    """

    knobs = Knobs(page_size=16, budget="768", keep_first=1, keep_last=4, reuse_layers=4)

    def slow(self, x):
        return ops.concat([x.slice("dim", "D/4", "D/2"), x.slice("dim", "3*D/4", "D")], "dim")

    def create_cache(self, page):
        return {"z": page.state(dim="D", dtype="int8")}

    def forward_cache(self, page):
        k = self.slow(page.k)
        return {"z": ops.concat([k.mean("token"), 0.5 * k.std("token")], "dim")}

    def forward_indexer(self, q, cache):
        q = self.slow(q)
        s = (ops.concat([q, q.abs()], "dim") * cache["z"]).sum("dim")
        v = (s / ops.size("D").sqrt()).softmax("page")
        return ops.topk(v.max("head") + v.mean("head"))
