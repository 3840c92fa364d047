"""Decode steps of a candidate and of dense attention, in turn in one process, on the same inputs."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from evaluators.resident import Resident
from evaluators.stages.operating import OperatingPoint
from vortex_core.ir.flow import Flow
from vortex_core.ir.program import Program

if TYPE_CHECKING:
    from vortex_core.engine import Prompt


@dataclass
class Timed:
    """One operating point.

    Attributes:
        candidate, dense: seconds of each timed step, by round.
        density: pages attended of all pages, over the candidate's sparse layers.
        ir_hash: the program that the engine says it ran.
    """

    point: OperatingPoint
    candidate: list[list[float]] = field(default_factory=list)
    dense: list[list[float]] = field(default_factory=list)
    density: float = 1.0
    ir_hash: str = ""

    @property
    def step(self) -> float:
        """Median seconds of a step of the candidate."""
        return statistics.median(s for steps in self.candidate for s in steps)

    @property
    def dense_step(self) -> float:
        """Median seconds of a dense step."""
        return statistics.median(s for steps in self.dense for s in steps)

    @property
    def ratios(self) -> list[float]:
        """Dense over candidate, by round: the medians of two neighbouring runs."""
        pairs = zip(self.dense, self.candidate, strict=True)
        return [statistics.median(a) / statistics.median(b) for a, b in pairs]


def time_decode(
    resident: Resident,
    flow: Flow,
    point: OperatingPoint,
    prompts: Sequence[Prompt],
    *,
    steps: int,
    warmup: int,
    rounds: int,
    check: Callable[[str], None],
) -> Timed:
    """Decode `warmup + steps` tokens behind the same prompts, both arms in every round, order alternating.

    Whatever is compiled or captured happens before: on a GPU each arm first decodes as many steps untimed.

    Args:
        check: called with words between rounds; raises where the time is up.

    Raises:
        VortexError: `VV110` if the engine reports another program.
    """
    found = Timed(point)

    def run(arm: str) -> list[float]:
        if arm == "candidate":
            result = resident.decode(flow, prompts, max_new_tokens=warmup + steps)
            found.density, found.ir_hash = result.density, result.ir_hash
        else:
            with resident.dense_aside():
                result = resident.decode(None, prompts, max_new_tokens=warmup + steps)
        return result.step_seconds[warmup:]

    if resident.engine.device.type == "cuda":
        for arm in ("dense", "candidate"):
            run(arm)
    for index in range(rounds):
        check(f"{index} of {rounds} rounds at {point.context} tokens")
        for arm in ("candidate", "dense") if index % 2 == 0 else ("dense", "candidate"):
            getattr(found, arm).append(run(arm))
    return found


@contextmanager
def random_inputs(resident: Resident, flow: Flow, point: OperatingPoint, seed: int) -> Iterator[list[Prompt]]:
    """Prompts of random keys and values, drawn anew for every candidate."""
    mixed = hashlib.sha256(f"{flow.key}:{point.context}:{seed}".encode()).digest()
    first = int.from_bytes(mixed[:6])
    prompts: list[Prompt] = []
    try:
        for index in range(point.batch):
            prompts.append(resident.engine.prefill_random(point.context, first + index))
        yield prompts
    finally:
        for prompt in prompts:
            resident.engine.release(prompt)


def follows_values(program: Program) -> bool:
    """Whether how many pages are attended depends on the keys: random ones would then time another density."""
    return any(node.op in ("topp", "threshold") for node in program.index.nodes)
