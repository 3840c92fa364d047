from vortex_core import ops, register, vFlow


@register("slow_half_centroid")
class SlowHalfCentroid(vFlow):
    """Centroid of a page in the half of the channels that rotate slowest, int8.

    rank(d) = channels with a smaller rotary frequency (ties: lower index first); slots 0..D/2-1 are kept.
    score(page) = mean_h softmax_pages(sum_slot q_h,slot mean_t k_t,slot * 1.2 / sqrt(D))
    Independent of whether the model's pairs are (d, d + D/2) or (2d, 2d + 1).
    Tune: 1.2 in [0.7, 2.0]
    """

    def pick(self):
        freq = ops.rotary()
        index = ops.arange(dim="D")
        freq_other = freq.rename(dim="other")
        index_other = index.rename(dim="other")
        before = (freq_other < freq) | ((freq_other == freq) & (index_other < index))
        rank = ops.where(before, 1.0, 0.0).sum("other")  # (dim)
        return ops.where(rank == ops.arange(slot="D/2"), 1.0, 0.0)  # (dim, slot)

    def create_cache(self, page):
        return {"slow": page.state(slot="D/2", dtype="int8")}

    def forward_cache(self, page):
        return {"slow": page.k.mean("token").dot(self.pick(), "dim")}

    def forward_indexer(self, q, cache):
        pick = self.pick()
        # In two halves: (head, dim, slot=D/2) would be too large a product.
        low = q.dot(pick.slice("slot", 0, "D/4"), "dim")
        high = q.dot(pick.slice("slot", "D/4", "D/2"), "dim")
        slow_q = ops.concat([low, high], "slot")  # (head, slot)
        logits = slow_q.dot(cache["slow"], "slot") * (1.2 * ops.size("D") ** -0.5)
        return ops.topk(logits.softmax("page").mean("head"))
