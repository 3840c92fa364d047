"""What a kernel of a program may take of a GPU: refused before one is held, by number, limit and remedy.

Which operators are lowered at all is told before, while text is generated (`VE050`).
"""

from __future__ import annotations

from dataclasses import dataclass

from vortex_core.device_errors import SMALLER, more_than_there_is
from vortex_core.errors import VortexError
from vortex_core.kernels.offline import TARGETS

SHARED_BYTES = dict.fromkeys(TARGETS, 232_448)
"""Shared memory that a block may have, by target: 227 KiB on Hopper and Blackwell."""
STACK_BYTES = 16_384
"""Stack of a thread that is no longer taken: a GPU sets it aside for every thread that it can hold, 4.4 GB on an H200."""


@dataclass(frozen=True)
class KernelUse:
    """What a kernel takes: registers and bytes of stack a thread, bytes of shared memory a block."""

    registers: int
    stack_bytes: int
    shared_bytes: int

    @property
    def spills(self) -> bool:
        """Whether registers did not suffice."""
        return self.stack_bytes > 0


def check_use(kernel: str, use: KernelUse, target: str, *, generated: bool) -> None:
    """Refuse a kernel that its target cannot run, or not run well.

    Args:
        generated: whether it is of the program; others are the engine's own, and the model is what does not fit.

    Raises:
        VortexError: `VE051` for shared memory, `VE056` for the stack.
    """
    most = SHARED_BYTES[target]
    if use.shared_bytes > most:
        raise more_than_there_is(
            f"{kernel} for {target}", use.shared_bytes, "bytes of shared memory", most, flow=generated
        )
    if use.stack_bytes > STACK_BYTES:
        raise VortexError(
            "VE056",
            f"{kernel} spills {use.stack_bytes:,} bytes of stack a thread on {target}, at most {STACK_BYTES:,} are taken",
            SMALLER if generated else "load the model in a narrower dtype (bf16)",
            fault=None if generated else "infrastructure",
        )
