from vortex_core import Knobs, ops, register, vFlow


@register("scaled_pairs")
class ScaledPairs(vFlow):
    """c215 k_max_k_norm_c5b6a0: band 1 weight moved, pool max, band 1 weight moved

    recipe[6-7 range centre=mean scaled=True planes=2 rows=1 per_channel=False small=int4 factors=0.98/0.53/0.27/0.13 weight=1.05 | 7-16 int4 centre=mean scaled=True planes=1 rows=1 per_channel=False small=int4 factors=0.98/0.53/0.27/0.13 weight=0.72 | pool=max heads=amax norm=int4 fitted=False lead=all closed=True temperature=1 variance=0]

    Found by grammar on smollm2-135m; its card is scaled_pairs.json.
    At equal budget and state bytes it beats moba page_size=16,budget=128,keep_first=1,keep_last=2 on smollm2-135m: accuracy difference +0.583 [+0.199, +0.807] on 12 sealed items.
    At equal budget and state bytes it beats rocketkv budget=128 on smollm2-135m: accuracy difference +0.667 [+0.263, +0.862] on 12 sealed items.
    At equal budget and state bytes it beats moba page_size=16,budget=128,keep_first=1,keep_last=2 on retrieval-mla: accuracy difference +0.444 [+0.265, +0.627] on 27 sealed items.
    At equal budget and state bytes it is not told apart from rocketkv budget=128 on retrieval-mla: accuracy difference +0.074 [-0.060, +0.234] on 27 sealed items.
    """

    knobs = Knobs(budget="128")

    def create_cache(self, page):
        return {
            "k_norm": page.state(row=page.size, dtype="int4"),
            "k_max": page.state(row=page.size, ch="9*D/16", dtype="int4"),
            "k_max2": page.state(ch="D/16", dtype="int4"),
            "k_max3": page.state(row=page.size, dtype="int8"),
            "k_max4": page.state(ch="9*D/16", dtype="int4"),
            "k_max5": page.state(row=page.size, ch="D/16", dtype="bits"),
            "k_max6": page.state(row=page.size, ch="D/16", dtype="bits"),
        }

    def forward_cache(self, page):
        x1 = page.k.rename(token="row")
        x2 = ops.concat(
            [x1.slice("dim", "3*D/16", "7*D/32"), x1.slice("dim", "11*D/16", "23*D/32")], "dim"
        ).rename(dim="ch")
        x3 = ops.concat([x1.slice("dim", "7*D/32", "D/2"), x1.slice("dim", "23*D/32", "D")], "dim").rename(
            dim="ch"
        )
        x4 = ((x2 * x2).sum("ch") + (x3 * x3).sum("ch")).sqrt()
        x5 = 1 / (x4.max("row") + 1.007e-06)
        x6 = x4 + 1e-06
        x7 = 7 * x5 * x6
        x8 = 1 / (x7 + 0.5).floor()
        x9 = x8 * x5
        x10 = x9 * x3
        x11 = (x8 * x3).sum("row")
        x12 = 1 / ops.size("S")
        x13 = x5 * x11 * x12
        x14 = x13.abs().max("ch") + 1e-09
        x15 = x5 * x11 / x14
        x16 = (x8 * x2).sum("row")
        x17 = x16 * x5 * x12
        x18 = x17.abs().max("ch") + 1e-09
        x19 = x16 * x5 * x12 / x18
        x20 = x9 * x2
        x21 = (7 * x19 + 0.5).floor() * x18
        x22 = x20 - 0.14285714285714285 * x21
        x23 = x22.abs()
        x24 = x23.max("ch", "row") + 1.8142857142857142e-08
        x25 = 127 * x23.max("ch") / x24 + 0.5
        x26 = x14 * (7 * x15 * x12 + 0.5).floor()
        x27 = x25.floor()
        x28 = 7 * x20 - x21
        return {
            "k_norm": x6,
            "k_max": 7 * x10 - x26,
            "k_max2": x21,
            "k_max3": 0.05511811023622047 * x27 * x24,
            "k_max4": x26,
            "k_max5": x28 - 0.027559055118110236 * x27 * x22.sign() * x24,
            "k_max6": x28,
        }

    def forward_indexer(self, q, cache):
        x1 = ops.concat([q.slice("dim", "7*D/32", "D/2"), q.slice("dim", "23*D/32", "D")], "dim").rename(
            dim="ch"
        )
        x2 = (
            0.6857142857142857
            * cache["k_norm"]
            * ((cache["k_max"] * x1).sum("ch") + (x1 * cache["k_max4"]).sum("ch"))
        )
        x3 = ops.concat(
            [q.slice("dim", "3*D/16", "7*D/32"), q.slice("dim", "11*D/16", "23*D/32")], "dim"
        ).rename(dim="ch")
        x4 = (
            0.5
            * cache["k_max3"]
            * ((x3 * cache["k_max6"]).sum("ch") + 0.5 * (x3 * cache["k_max5"]).sum("ch"))
        )
        x5 = (x2 + cache["k_norm"] * (x4 + (cache["k_max2"] * x3).sum("ch"))).max("head", "row")
        return ops.topk(x5)
