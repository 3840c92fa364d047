"""A tuning result for attention over lists, whatever the dtype, and what launches were cut by."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from vortex_core.compiler.triton.backend import TritonFlow
from vortex_core.kernels.decode.config import DecodeConfig

TUNED = DecodeConfig(32, 4, 1, 1, fused_merge=False, even=True)


def attention_tiles(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> list[int]:
    """Flows have a result with tiles of 32 tokens; the tiles that `module` launches attention with, as it does."""
    tiles: list[int] = []
    launch = module.paged_decode

    def recorded(*given: Any, config: DecodeConfig, **named: Any) -> Any:
        tiles.append(config.block_n)
        return launch(*given, config=config, **named)

    monkeypatch.setattr(TritonFlow, "attention_config", lambda self, batch, width, kv_dtype: TUNED)
    monkeypatch.setattr(module, "paged_decode", recorded)
    return tiles
