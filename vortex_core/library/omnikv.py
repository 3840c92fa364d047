from vortex_core import Knobs, ops, register, vFlow


@register("omnikv")
class OmniKV(vFlow):
    """OmniKV (Hao et al., ICLR 2025; not on arXiv), page-relaxed: the first layers and a few filter layers attend
    to everything, and the layers after a filter attend to the context that any of its heads attends to most. The
    original selects tokens and keeps the rest in host memory; its filters are chosen by model.

    score(page) = max over all heads of mass_h(page) in the newest dense layer
    """

    knobs = Knobs(dense_layers=(0, 1, 2, 8, 18), reuse_layers=64)

    def forward_indexer(self, q, cache):
        return ops.topk(ops.dense_mass().max("head"), share="max")
