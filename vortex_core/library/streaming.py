from vortex_core import Knobs, ops, register, vFlow


@register("streaming")
class Streaming(vFlow):
    """StreamingLLM (Xiao et al., arXiv 2309.17453): attention sinks and the most recent pages; no scoring.

    score(page) = position
    """

    knobs = Knobs(keep_first=1, keep_last=2)

    def forward_indexer(self, q, cache):
        return ops.topk(ops.position())
