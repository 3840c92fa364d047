"""A tuning result for attention over lists, whatever the dtype, and what launches were cut by."""

from __future__ import annotations

from typing import Any

import pytest

from vortex_core.compiler.triton.backend import TritonFlow
from vortex_core.kernels.decode import plan
from vortex_core.kernels.decode.config import DecodeConfig

TUNED = DecodeConfig(32, 4, 1, 1, fused_merge=False, even=True)


def attention_tiles(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Flows have a result with tiles of 32 tokens; the tiles that attention is launched with, as it is."""
    tiles: list[int] = []
    launch = plan.paged_decode

    def recorded(*given: Any, config: DecodeConfig, **named: Any) -> Any:
        tiles.append(config.block_n)
        return launch(*given, config=config, **named)

    monkeypatch.setattr(TritonFlow, "attention_config", lambda self, batch, width, kv_dtype: TUNED)
    monkeypatch.setattr(plan, "paged_decode", recorded)
    return tiles
