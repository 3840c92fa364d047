from vortex_core import Knobs, ops, register, vFlow


@register("tidaldecode")
class TidalDecode(vFlow):
    """TidalDecode (arXiv 2410.05076), page-relaxed: the first two layers attend to everything, and so do two
    layers that select; the layers after each attend to what it attended to most, in the same step. The
    original selects tokens. Layer 13 is one of its choices for a model of 32 layers.

    score(page) = sum_h mass_h(page) in the newest dense layer
    """

    knobs = Knobs(dense_layers=(0, 1, 2, 13), reuse_layers=64)

    def forward_indexer(self, q, cache):
        return ops.topk(ops.dense_mass().sum("head"))
