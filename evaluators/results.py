"""What stages take and return. Plain frozen records that cross process boundaries as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from vortex_core.errors import Fault, VortexError

How = Literal["measured", "modelled", "recorded"]


TOKEN_TASKS = frozenset({"perplexity"})


@dataclass(frozen=True)
class Metric:
    """One measured or modelled number with its interval (95% unless `info` says otherwise)."""

    value: float
    low: float | None = None
    high: float | None = None
    unit: str = ""
    higher_is_better: bool = True
    how: How = "measured"
    n: int = 1

    def to_json(self) -> dict[str, Any]:
        """Plain dict."""
        return dict(self.__dict__)


@dataclass(frozen=True)
class Failure:
    """Why a stage stopped. `kind` is the error's fault: only a candidate's is scored and fed back."""

    kind: Fault
    error: dict[str, Any]

    @classmethod
    def of(cls, error: VortexError) -> Failure:
        """An error as JSON, with whose fault it is."""
        return cls(error.fault, error.to_json())


@dataclass(frozen=True)
class StageResult:
    """What one stage found.

    Attributes:
        stage: its name.
        passed: whether later stages may run.
        metrics: numbers by name.
        items: per-item outcomes for paired statistics, by task: `{task: [score, ...]}` in item order. Those of
            `TOKEN_TASKS` are log-likelihoods of tokens, all others answers from 0 to 1.
        info: side information for the agent (per-head recall, bottleneck, worst task, ...).
        failure: set when it did not pass.
        seconds: wall time.
    """

    stage: str
    passed: bool
    metrics: dict[str, Metric] = field(default_factory=dict)
    items: dict[str, list[float]] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    failure: Failure | None = None
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain dict, inverse of `from_json`."""
        return {
            "stage": self.stage,
            "passed": self.passed,
            "metrics": {k: m.to_json() for k, m in self.metrics.items()},
            "items": self.items,
            "info": self.info,
            "failure": None
            if self.failure is None
            else {"kind": self.failure.kind, "error": self.failure.error},
            "seconds": self.seconds,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> StageResult:
        """Rebuild from `to_json`."""
        failure = data.get("failure")
        return cls(
            stage=data["stage"],
            passed=data["passed"],
            metrics={k: Metric(**m) for k, m in data["metrics"].items()},
            items=data["items"],
            info=data["info"],
            failure=None if failure is None else Failure(failure["kind"], failure["error"]),
            seconds=data["seconds"],
        )
