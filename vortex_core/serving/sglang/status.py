"""Proof of what ran: one log line at start, one now and then with the density of a real step, and a file."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from vortex_core.serving.decoder import FlowDecoder

logger = logging.getLogger(__name__)
EVERY = 64  # decode steps between samples


@dataclass
class Status:
    """What one rank reports; silent on ranks other than 0.

    Attributes:
        path: file that always holds the newest report, or None.
        facts: what does not change: program, settings, layers, bytes.
        steps, samples: decode steps so far, and how many of them were looked at.
        passed_by: of the steps, those in which the prefill backend attended (below the flow's crossover).
        attended, there: tokens that those attended, and tokens there were; density is their ratio.
    """

    path: str | None
    facts: dict[str, Any]
    speaks: bool
    steps: int = 0
    attended: float = 0.0
    there: float = 0.0
    samples: int = 0
    passed_by: int = 0
    _pending: tuple[torch.Tensor, torch.cuda.Event | None] | None = field(default=None, repr=False)

    def announce(self) -> None:
        """Log what is served and begin the file."""
        if not self.speaks:
            return
        logger.info("vortex: serving %s", ", ".join(f"{k} {v}" for k, v in self.facts.items()))
        self._write()

    def sample(self, decoder: FlowDecoder) -> None:
        """Called before every decode step. Now and then looks at the selection of the one before.

        Nothing waits: the sums travel to the host behind the step and are read once they have arrived.
        """
        if not self.speaks:
            return
        self.steps += 1
        if self._pending is not None:
            sums, event = self._pending
            if event is None or event.query():
                self._pending = None
                self._record(*(float(x) for x in sums))
        elif self.steps % EVERY == 2:  # the second step, so that short runs report too
            found = decoder.attended()
            if found is not None:
                self._pending = _to_host(found)

    def _record(self, attended: float, there: float) -> None:
        if there == 0.0:  # only padding
            return
        self.attended, self.there, self.samples = (
            self.attended + attended,
            self.there + there,
            self.samples + 1,
        )
        logger.info(
            "vortex: IR %s, step %d: density %.4f", self.facts["ir_hash"], self.steps, attended / there
        )
        self._write()

    def _write(self) -> None:
        if self.path is None:
            return
        density = self.attended / self.there if self.there else None
        report = {
            **self.facts, "decode_steps": self.steps, "passed_by": self.passed_by, "density": density,
            "samples": self.samples,
            "attended_tokens": self.attended, "tokens_there": self.there,
        }  # fmt: skip
        target = Path(self.path)
        staged = target.with_name(f"{target.name}.{os.getpid()}")
        staged.write_text(json.dumps(report), encoding="utf-8")
        staged.replace(target)


def _to_host(sums: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event | None]:
    if sums.device.type != "cuda":
        return sums.clone(), None
    host = torch.empty(sums.shape, dtype=sums.dtype, pin_memory=True)
    host.copy_(sums, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return host, event
