"""Programs are priced in bytes before anything is allocated."""

from __future__ import annotations

from evaluators.stages.static import MAX_WORKING_BYTES
from vortex_core import library
from vortex_core.ir.knobs import Knobs
from vortex_core.ir.memory import working_bytes
from vortex_core.sandbox.jail import run
from vortex_core.specs import load_model

LARGE = """from vortex_core import ops, vFlow
class W(vFlow):
    def create_cache(self, page):
        return {"a": page.state(x=2 ** 16), "b": page.state(x=2 ** 16)}
    def forward_cache(self, page):
        return {n: page.k.max("token", "dim") * ops.arange(x=2 ** 16) ** p for n, p in (("a", 1), ("b", 2))}
    def forward_indexer(self, q, cache):
        return ops.topk((cache["a"] * cache["b"].exp() * q.sum("dim", "head")).sum("x"))
"""


def test_a_large_state_costs_what_it_takes() -> None:
    model = load_model("smollm2-135m").geometry()
    large = run(LARGE, "x.py")
    rows = model.kv_heads * 4096 // 16
    states, value = model.layers * rows * 2 * 2**16 * 2, rows * 2**16 * 8
    assert states + 2 * value <= working_bytes(large.program, large.knobs, model, 4096) <= states + 4 * value
    assert working_bytes(large.program, large.knobs, model, 4096) > MAX_WORKING_BYTES


def test_every_library_flow_fits_at_long_contexts() -> None:
    model = load_model("qwen3-8b").geometry()
    for name in library.names():
        flow = library.load(name)
        assert (
            working_bytes(flow.program, Knobs(page_size=flow.knobs.page_size), model, 8192)
            < MAX_WORKING_BYTES
        ), name
