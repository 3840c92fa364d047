import math

from vortex_core import ops, register, vFlow


@register("derotated_centroid")
class DerotatedCentroid(vFlow):
    """Centroid of the keys turned back by their offset within the page, scored at every offset.

    Pairs are (d, d + D/2). o = t - (S - 1) / 2, w = radians a token:
    c = mean_t R(-o_t w) k_t; logit_h(o) = q_h . R(o w) c / sqrt(D) = (R(-o w) q_h) . c / sqrt(D)
    score(page) = mean_h softmax_pages(logsumexp_o logit_h(o))
    cos is a Taylor series on the angle reduced to one turn, doubled three times.
    """

    def cosine(self, angle):
        turn = angle / (2.0 * math.pi)
        y = (turn - turn.round()) * (2.0 * math.pi / 8.0)
        y2 = y * y
        c = 1.0 - y2 / 2.0 + y2 * y2 / 24.0 - y2 * y2 * y2 / 720.0
        for _ in range(3):
            c = 2.0 * c * c - 1.0
        return c

    def frequency(self):
        return ops.rotary().split("dim", half=2).max("half").rename(dim="pair")  # (pair)

    def halves(self, x):
        parts = x.split("dim", half=2).rename(dim="pair")
        return parts.take(0, "half"), parts.take(1, "half")

    def create_cache(self, page):
        return {
            "re": page.state(pair="D/2", dtype="int8"),
            "im": page.state(pair="D/2", dtype="int8"),
        }

    def forward_cache(self, page):
        offset = ops.arange(token="S") + 0.5 - ops.size("S") / 2
        angle = offset * self.frequency()  # (token, pair)
        cos = self.cosine(angle)
        sin = self.cosine(angle - math.pi / 2.0)
        x, y = self.halves(page.k)  # (token, pair)
        return {
            "re": (x * cos + y * sin).mean("token"),
            "im": (y * cos - x * sin).mean("token"),
        }

    def forward_indexer(self, q, cache):
        offset = ops.arange(off="S") + 0.5 - ops.size("S") / 2
        angle = offset * self.frequency()  # (off, pair)
        cos = self.cosine(angle)
        sin = self.cosine(angle - math.pi / 2.0)
        x, y = self.halves(q)  # (head, pair)
        turned_re = x * cos + y * sin  # (head, off, pair)
        turned_im = y * cos - x * sin
        logits = turned_re.dot(cache["re"], "pair") + turned_im.dot(cache["im"], "pair")
        logits = logits * ops.size("D") ** -0.5  # (page, head, off)
        return ops.topk(logits.logsumexp("off").softmax("page").mean("head"))
