"""Machine code of attention over lists, for sm_90a, run on a CPU beside fp64."""

from __future__ import annotations

import pytest

from benchmarks.emulated_attention import CUTS, emulate_attention
from vortex_core.kernels.decode.config import DecodeConfig

UNIT = 2.0**-8  # bf16 weights


@pytest.mark.parametrize("config", CUTS, ids=lambda c: f"{c.block_n}-{c.num_warps}-{c.late_sums}")
def test_it_is_attention_under_every_cut(config: DecodeConfig) -> None:
    for length in (0, 1, 15, 17, 300):
        found = emulate_attention(config, length)
        assert found.error <= UNIT and not found.hazards, (length, found)
