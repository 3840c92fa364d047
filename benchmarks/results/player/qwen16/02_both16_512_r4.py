from vortex_core import Knobs, ops, register, vFlow


@register("both16_512_r4")
class Flow(vFlow):
    """Best head plus mean head over centre and half spread of 16-token pages; four layers share 512 tokens.

    score(page) = max_h s_h + mean_h s_h, s_h = q_h . mean k + |q_h| . std k / 2, slow half of the rotary pairs
    """

    knobs = Knobs(page_size=16, budget="512", keep_first=1, keep_last=4, reuse_layers=4)

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
        return ops.topk(s.max("head") + s.mean("head"))
