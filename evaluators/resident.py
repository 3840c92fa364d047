"""A resident engine and the candidate it holds: candidates are swapped under prompts that stay."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from evaluators.device import device_kind
from evaluators.errors import not_what_ran
from vortex_core.ir.crossover import NEVER

if TYPE_CHECKING:  # the engine brings transformers along, which CPU stages do without
    from evaluators.recall import Recorder
    from vortex_core.engine import DecodeResult, Engine, Prompt, Sampling
    from vortex_core.ir.flow import Flow


class Resident:
    """One engine, loaded with dense attention or with one candidate, and proof of which.

    Attributes:
        swap_seconds: what loading the present candidate took.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.swap_seconds = 0.0
        self._loaded = ""

    @property
    def label(self) -> str:
        """The model, device, dtype and backend of what is measured here, for every result's side information."""
        engine = self.engine
        dtype = str(engine.dtype).removeprefix("torch.")
        return f"{engine.spec.name}, {device_kind(engine.device)}, {dtype}, {engine.backend}"

    def load(self, flow: Flow | None) -> None:
        """Make the engine run a candidate, or dense attention."""
        key = "dense" if flow is None else flow.key
        if key == self._loaded:
            return
        self._loaded = ""
        if flow is None:
            report = self.engine.load_flow(None)
        else:
            # As written at every length: below a crossover it would be dense attention that is judged.
            report = self.engine.load_flow(flow.program, flow.knobs, crossover=NEVER)
        self._loaded = key
        self.swap_seconds = report.seconds

    def forget_loaded(self) -> None:
        """Load the next flow anew, whatever the engine seems to hold."""
        self._loaded = ""

    @contextmanager
    def dense_aside(self) -> Iterator[None]:
        """Run dense for a while and take the loaded flow back, its page states kept.

        No prompt may be prefilled meanwhile: its states would be missing. (Decodes are fine: a flow forgets
        the blocks that are taken for others.)
        """
        loaded, self._loaded = self._loaded, "dense"
        try:
            with self.engine.dense():
                yield
        finally:
            self._loaded = loaded

    def decode(
        self,
        flow: Flow | None,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int,
        forced: Sequence[Sequence[int | None]] | None = None,
        stop_ids: Sequence[int] = (),
        sampling: Sampling | Sequence[Sampling] | None = None,
        recorder: Recorder | None = None,
    ) -> DecodeResult:
        """Decode with a candidate (None: dense) and check that it was what ran.

        Raises:
            VortexError: `VV110` if the engine reports another program.
        """
        self.load(flow)
        result = self.engine.decode(
            prompts, max_new_tokens=max_new_tokens, forced=forced, stop_ids=stop_ids,
            sampling=sampling, recorder=recorder,
        )  # fmt: skip
        wanted = "dense" if flow is None else flow.program.ir_hash
        if result.ir_hash != wanted:
            raise not_what_ran(wanted, result.ir_hash)
        return result
