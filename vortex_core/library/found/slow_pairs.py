from vortex_core import Knobs, ops, register, vFlow


@register("slow_pairs")
class SlowPairs(vFlow):
    """c086 k_state_f648c1: temperature moved, band 4-16 kept otherwise, band 4-16 in other bits

    recipe[5-16 int4 centre=none scaled=False planes=1 rows=1 per_channel=False small=int4 factors=0.98/0.53/0.27/0.13 weight=1 | pool=mass heads=mean norm=int8 fitted=False lead=all closed=True temperature=0.9 variance=0]

    Found by grammar on smollm2-135m; its card is slow_pairs.json.
    At equal budget and state bytes it beats moba page_size=16,budget=128,keep_first=1,keep_last=2 on smollm2-135m: accuracy difference +0.458 [+0.257, +0.649] on 24 sealed items.
    At equal budget and state bytes it beats rocketkv budget=128 on smollm2-135m: accuracy difference +0.750 [+0.509, +0.880] on 24 sealed items.
    At equal budget and state bytes it beats moba page_size=16,budget=128,keep_first=1,keep_last=2 on retrieval-mla: accuracy difference +0.574 [+0.442, +0.697] on 54 sealed items.
    At equal budget and state bytes it beats rocketkv budget=128 on retrieval-mla: accuracy difference +0.296 [+0.191, +0.428] on 54 sealed items.
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
        x4 = (0.9 * x2 * x3 - 0.9 * x2.max("page", "row") * x3).exp()
        x5 = x4.sum("row") / x4.sum("page", "row")
        return ops.topk(x5.sum("head"))
