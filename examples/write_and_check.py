"""Write a flow, check it as untrusted source, read its error, and watch it choose pages on real tensors.

python examples/write_and_check.py
"""

from __future__ import annotations

import torch

from vortex_core import Knobs, ops, vFlow
from vortex_core.errors import VortexError
from vortex_core.flow import eager
from vortex_core.ir.modelled import modelled_decode
from vortex_core.sandbox.load import trace_source
from vortex_core.specs import load_gpu, load_model

SOURCE = '''
from vortex_core import Knobs, ops, vFlow


class MeanAndPeak(vFlow):
    """Scores a page by its mean key, and adds what its strongest channel could give."""

    knobs = Knobs(budget="max(256, length / 16)", page_size=16)

    def create_cache(self, page):
        return {"mean": page.state(dim=page.head_dim), "peak": page.state(dim=page.head_dim, dtype="int8")}

    def forward_cache(self, page):
        return {"mean": page.k.mean("token"), "peak": page.k.abs().max("token")}

    def forward_indexer(self, q, cache):
        score = (q * cache["mean"]).sum("dim") + (q.abs() * cache["peak"]).max("dim") * 0.5
        return ops.topk(score.max("head"))
'''


class ByMean(vFlow):
    """The smallest flow: one mean key a page."""

    knobs = Knobs(budget="48", page_size=16)

    def create_cache(self, page):
        return {"mean": page.state(dim=page.head_dim)}

    def forward_cache(self, page):
        return {"mean": page.k.mean("token")}

    def forward_indexer(self, q, cache):
        return ops.topk((q * cache["mean"]).sum("dim").max("head"))


def main() -> None:
    # Foreign source is traced in the jail; what comes back is verified IR.
    traced = trace_source(SOURCE, "mean_and_peak.py")
    print(f"{traced.name}: program {traced.ir_hash}, candidate {traced.key}")

    # Every mistake has a code, the line, the rule and one remedy.
    try:
        trace_source(SOURCE.replace('.max("head")', '.max("heads")'), "wrong.py")
    except VortexError as error:
        print(error)

    # The same class runs on tensors: one kv head, 160 tokens, two query heads.
    torch.manual_seed(0)
    k, v, q = torch.randn(160, 64), torch.randn(160, 64), torch.randn(2, 64)
    print(f"pages chosen: {eager.run(ByMean, k, v, q).pages[0]}")

    # What a decode step would cost on a GPU that is not here.
    step = modelled_decode(
        traced.program, traced.knobs, load_model("qwen3-8b"), load_gpu("h200"), batch=16, length=32_000
    )
    print(f"Qwen3-8B on an H200, 16 x 32,000, modelled: {step.speedup:.2f}x dense, bound by {step.bound_by}")


if __name__ == "__main__":
    main()
