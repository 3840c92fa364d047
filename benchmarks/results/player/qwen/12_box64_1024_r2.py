from vortex_core import Knobs, ops, register, vFlow


@register("box64_1024_r2")
class Flow(vFlow):
    """Quest's bound summed over heads before pages are read, slow channels, int8; page 64, two layers share.

    score(page) = mean_h (max(q_h, 0) . max k + min(q_h, 0) . min k), slow half of the rotary pairs, one state
    """

    knobs = Knobs(page_size=64, budget="1024", keep_first=1, keep_last=2, reuse_layers=2)

    def slow(self, x):
        return ops.concat([x.slice("dim", "D/4", "D/2"), x.slice("dim", "3*D/4", "D")], "dim")

    def create_cache(self, page):
        return {"z": page.state(dim="D", dtype="int8")}

    def forward_cache(self, page):
        k = self.slow(page.k)
        return {"z": ops.concat([k.max("token"), k.min("token")], "dim")}

    def forward_indexer(self, q, cache):
        q = self.slow(q)
        both = ops.concat([ops.maximum(q, 0.0), ops.minimum(q, 0.0)], "dim")
        return ops.topk((both.mean("head") * cache["z"]).sum("dim"))
