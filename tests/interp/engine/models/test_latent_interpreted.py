"""Latent attention through the engine's Triton path, under the interpreter: tokens of the torch backend."""

from __future__ import annotations

import os
import subprocess
import sys

CHECK = """
import torch
torch.set_num_threads(1)
from tests.cpu.engine.conftest import random_ids
from tests.cpu.engine.models.conftest import tiny
from vortex_core import library
from vortex_core.engine.engine import Engine

engines = {b: Engine(tiny("glm4_moe_lite", num_hidden_layers=2), max_tokens=1024, backend=b)
           for b in ("torch", "triton")}
for flow, knobs in (
    ("dense", {}),
    ("rope_weighted_block_topk", {"page_size": 8, "budget": "40"}),
    ("rope_unaware_block_topk", {"page_size": 8, "budget": "40", "dense_layers": (0,)}),
):
    found = []
    for engine in engines.values():
        traced = library.load(flow).with_knobs(**knobs)
        engine.load_flow(*((None,) if flow == "dense" else (traced.program, traced.knobs)))
        prompts = [engine.prefill(random_ids(n, n)) for n in (90, 37)]
        found.append(engine.decode(prompts, max_new_tokens=4))
        for prompt in prompts:
            engine.release(prompt)
        engine.check_integrity()
    a, b = found
    assert a.tokens == b.tokens, (flow, a.tokens, b.tokens)
    assert abs(a.density - b.density) < 1e-9, (a.density, b.density)
    worst = (torch.tensor(a.logprobs) - torch.tensor(b.logprobs)).abs().max()
    assert worst < 2e-4, (flow, worst)
    assert (flow == "dense") == (a.density == 1.0)
    print("same", flow, flush=True)
"""


def test_both_backends_decode_the_same_tokens() -> None:
    """In a subprocess, because kernels are interpreted or compiled for a whole process."""
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": "."}
    done = subprocess.run([sys.executable, "-c", CHECK], capture_output=True, text=True, env=env, timeout=170)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split()[1::2] == ["dense", "rope_weighted_block_topk", "rope_unaware_block_topk"]
