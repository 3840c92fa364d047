"""Random values for the flows that need learned ones: enough to read them, not to judge them."""

from __future__ import annotations

import math
import random
from array import array
from functools import lru_cache

from vortex_core import library
from vortex_core.flow.trace import Traced
from vortex_core.ir.params import Values
from vortex_core.sandbox.jail import run

LAYERS, KV_HEADS, GROUP, DIM = 30, 3, 3, 16
SHAPES: dict[str, dict[str, tuple[int, ...]]] = {  # behind layer and kv head
    "loki": {"components": (16, DIM)},
    "double_sparsity": {"channels": (16, DIM)},
    "pqcache": {"centroids": (2, 64, DIM // 2)},
    "seerattention": {"wq": (GROUP, 32, DIM), "wmax": (32, DIM), "wmin": (32, DIM), "wmean": (32, DIM)},
    "hata": {"hash": (128, DIM)},
    "hashattention": {"q1": (64, DIM), "q2": (32, 64), "k1": (64, DIM), "k2": (32, 64)},
    "learned_block_topk": {"wq": (GROUP, 8, DIM), "wk": (GROUP, 8, DIM)},
}


@lru_cache
def values(name: str) -> dict[str, Values]:
    """Seeded normal values for one flow."""
    rng = random.Random(name)
    found = {}
    for key, inner in SHAPES[name].items():
        shape = (LAYERS, KV_HEADS, *inner)
        numbers = array("f", [rng.gauss(0.0, 0.3) for _ in range(math.prod(shape))])
        found[key] = Values(shape, numbers.tobytes())
    return found


@lru_cache
def load(name: str) -> Traced:
    """Any library flow, with random values where it needs some."""
    if name in SHAPES:
        return run(library.source(name), f"{name}.py", None, values(name))
    return library.load(name)
