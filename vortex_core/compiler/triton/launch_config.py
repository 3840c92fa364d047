"""How the launches of a flow's step are cut: an explicit argument of code generation and of every launch.

The defaults were measured on one H100; `tuning.py` stores what was found better on another machine or shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from vortex_core.kernels.decode.config import DecodeConfig


@dataclass(frozen=True)
class ScoreConfig:
    """How the scoring launches are cut: tiles, blocks, warps and stages.

    Attributes:
        block: pages scored at once, a power of two; 0: as many as registers hold (`lower.pages_per_program`). Part of
            the generated text.
        blocks: blocks of pages a program takes in turn; 0: by the number of programs (`flow.score_blocks`).
        warps: of a page-parallel program; 0: as its products ask for (`generate.Module`).
        stages: a program of several blocks loads this many ahead, less one.
        row_warps: of a program that looks across a row's pages; 0: by the row's numbers (`row_kernel.row_cut`).
        channels: most of a matrix product where their number is no power of two; 0: by the number of programs. Part of
            the generated text.
        row_block: pages that a program which looks across a row's pages takes at once; 0: by the row's numbers. Part of
            the generated text.
    """

    block: int = 0
    blocks: int = 0
    warps: int = 0
    stages: int = 2
    row_warps: int = 0
    channels: int = 0
    row_block: int = 0


@dataclass(frozen=True)
class FlowConfig:
    """A step. `attention`: over the selected lists; None: `decode_config` or `mla_config`."""

    score: ScoreConfig = ScoreConfig()
    attention: DecodeConfig | None = None

    def to_json(self) -> dict[str, Any]:
        """The configuration as plain values that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> FlowConfig:
        """The configuration that `to_json` wrote.

        Raises:
            ValueError: fields missing, unknown or of another type.
        """
        if set(data) != {"score", "attention"}:
            raise ValueError(f"a configuration has score and attention, found {sorted(data)}")
        attention = data["attention"]
        return cls(
            _checked(ScoreConfig, data["score"]),
            None if attention is None else _checked(DecodeConfig, attention),
        )


_C = TypeVar("_C", ScoreConfig, DecodeConfig)


def _checked(kind: type[_C], data: Any) -> _C:
    names = {f.name: f.type for f in fields(kind)}
    if not isinstance(data, dict) or set(data) != set(names):
        raise ValueError(f"{kind.__name__} has {sorted(names)}, found {data!r}")
    for name, value in data.items():
        if type(value).__name__ != names[name] or value < 0:
            raise ValueError(f"{kind.__name__}.{name} is {value!r}")
    return kind(**data)


Configs = Callable[[int, int], FlowConfig]
"""Batch and pages of the longest table row to a configuration."""


DEFAULT = FlowConfig()


def default_configs(batch: int, pages: int) -> FlowConfig:
    """The defaults, whatever the shape."""
    return DEFAULT
