from vortex_core import Knobs, ops, register, vFlow


@register("slow_pairs_peak")
class SlowPairsPeak(vFlow):
    """drawn

    recipe[5-16 int4 centre=none scaled=False planes=1 rows=1 per_channel=False small=int4 factors=0.98/0.53/0.27/0.13 weight=1 | pool=mass heads=amax norm=int8 fitted=False lead=all closed=False temperature=0.8 variance=0]

    Found by grammar on smollm2-135m; its card is slow_pairs_peak.json.
    At equal budget and state bytes it beats masked_quest budget=128 on smollm2-135m: accuracy difference +0.625 [+0.401, +0.788] on 24 sealed items.
    At equal budget and state bytes it beats rocketkv budget=128 on smollm2-135m: accuracy difference +0.667 [+0.437, +0.820] on 24 sealed items.
    At equal budget and state bytes it beats masked_quest budget=128 on retrieval-mla: accuracy difference +0.444 [+0.320, +0.576] on 54 sealed items.
    At equal budget and state bytes it beats rocketkv budget=128 on retrieval-mla: accuracy difference +0.222 [+0.132, +0.349] on 54 sealed items.
    """

    knobs = Knobs(budget="128")

    def create_cache(self, page):
        return {
            "k_state": page.state(row=page.size, ch="11*D/16", dtype="int4"),
        }

    def forward_cache(self, page):
        x1 = page.k.rename(token="row")
        x2 = ops.concat([x1.slice("dim", "5*D/32", "D/2"), x1.slice("dim", "21*D/32", "D")], "dim").rename(
            dim="ch"
        )
        return {
            "k_state": x2,
        }

    def forward_indexer(self, q, cache):
        x1 = ops.concat([q.slice("dim", "5*D/32", "D/2"), q.slice("dim", "21*D/32", "D")], "dim").rename(
            dim="ch"
        )
        x2 = (x1 * cache["k_state"]).sum("ch")
        x3 = 1 / ops.size("D").sqrt()
        x4 = (0.8 * x2 * x3 - 0.8 * x2.max("page", "row") * x3).exp()
        x5 = x4.sum("row") / x4.sum("page", "row")
        return ops.topk(x5.max("head"))
