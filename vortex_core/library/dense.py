from vortex_core import Knobs, ops, register, vFlow


@register("dense")
class Dense(vFlow):
    """Full attention (Vaswani et al., arXiv 1706.03762): every page, every step. The reference row."""

    knobs = Knobs(budget="length")

    def forward_indexer(self, q, cache):
        return ops.everything()
