from vortex_core import ops, register, vFlow


@register("rotary_split_bound")
class RotarySplitBound(vFlow):
    """Box bound where the rotation is slow, amplitude bound where it is fast. Pairs are (d, d + D/2).

    slow pairs (the upper half of the frequencies' index): sum max(q kmax, q kmin)
    fast pairs: sum_p |q_p| rms_t |k_t,p|, the invariant of the rotation, weighted by 0.25
    score(page) = mean_h softmax_pages((0.5 (slow bound + slow middle) + 0.25 fast) / sqrt(D))
    Tune: 0.25 in [0.0, 1.0]; 0.35 in [0.1, 1.0]
    """

    def slow(self, x):
        return x.split("dim", half=2).slice("dim", "D/4", "D/2").rename(dim="slow")

    def fast(self, x):
        return x.split("dim", half=2).slice("dim", 0, "D/4").rename(dim="fast").norm("half")

    def create_cache(self, page):
        return {
            "mid": page.state(half=2, slow="D/4", dtype="int8"),
            "rad": page.state(half=2, slow="D/4", dtype="int4"),
            "amp": page.state(fast="D/4", dtype="int4"),
        }

    def forward_cache(self, page):
        slow = self.slow(page.k)  # (token, half, slow)
        high = slow.max("token")
        low = slow.min("token")
        return {
            "mid": 0.5 * (high + low),
            "rad": 0.5 * (high - low),
            "amp": self.fast(page.k).square().mean("token").sqrt(),
        }

    def forward_indexer(self, q, cache):
        slow_q = self.slow(q)  # (head, half, slow)
        box = (slow_q * cache["mid"]).sum("half", "slow")
        box = box + 0.35 * (slow_q.abs() * cache["rad"]).sum("half", "slow")
        swing = self.fast(q).dot(cache["amp"], "fast")  # (page, head)
        logits = (box + 0.25 * swing) * ops.size("D") ** -0.5
        return ops.topk(logits.softmax("page").mean("head"))
