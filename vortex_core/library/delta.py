from vortex_core import Knobs, ops, register, vFlow


@register("delta")
class Delta(vFlow):
    """DELTA (arXiv 2510.09883): the first layers attend to everything, and so do a few layers that find salient
    pages by the attention of all heads together; the layers after each attend to its pages and to the newest.
    Which layers select is calibrated by model; here they are spread over one of about 30 layers.

    score(page) = mean over all heads of mass_h(page) in the newest dense layer
    """

    knobs = Knobs(dense_layers=(0, 1, 2, 9, 16, 23), reuse_layers=64, keep_last=8)

    def forward_indexer(self, q, cache):
        return ops.topk(ops.dense_mass().mean("head"), share="mean")
