from vortex_core import Knobs, ops, register, vFlow


@register("spread32_768_r8")
class Flow(vFlow):
    """Centre and spread of a page's slow channels side by side in one row of 128 numbers;
    eight layers share a larger selection.

    score(page) = mean_h (q_h . mean k + |q_h| . std k), slow half of the rotary pairs, one state
    """

    knobs = Knobs(page_size=32, budget="768", keep_first=1, keep_last=2, reuse_layers=8)

    def slow(self, x):
        return ops.concat([x.slice("dim", "D/4", "D/2"), x.slice("dim", "3*D/4", "D")], "dim")

    def create_cache(self, page):
        return {"z": page.state(dim="D", dtype="int8")}

    def forward_cache(self, page):
        k = self.slow(page.k)
        return {"z": ops.concat([k.mean("token"), k.std("token")], "dim")}

    def forward_indexer(self, q, cache):
        q = self.slow(q)
        return ops.topk((ops.concat([q, q.abs()], "dim").mean("head") * cache["z"]).sum("dim"))
