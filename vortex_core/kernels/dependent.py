"""Programmatic dependent launch: a kernel's blocks take their places while the kernel before it still ends.

A step is a chain of short kernels, each reading what the one before wrote. Launched one after the other they
cost a drain, a launch and a ramp at every joint. With `launch_pdl` a kernel may start as soon as every block of
the one before has announced it, and `griddepcontrol.wait` holds it until that kernel has ended and its writes
are visible.

Every kernel launched so calls `await_previous` first, in every block, before it reads or writes memory. So
when a kernel goes on, the one before it has ended, which itself went on only when the one before that had
ended: all earlier work of the stream is complete, as with an ordinary launch. A kernel that does not call it
must be launched without `launch_pdl` and may stand anywhere in the chain.

When the next kernel may begin is a matter of speed only. Once a block's main work is done (`LATE`; at the latest
when it ends) hides the launch. At once (`EARLY`) hides more, but the next kernel's blocks hold registers and shared
memory meanwhile and crowd onto the multiprocessors that are free first: attention with two blocks a multiprocessor
loses 5-10% so on an H100. It is for kernels whose blocks fill a multiprocessor each.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import cuda

EARLY = tl.constexpr(1)
LATE = tl.constexpr(2)


@triton.jit
def await_previous(PDL: tl.constexpr):
    """Waits for the kernel before this one. PDL: 0 (other GPUs, interpreter: nothing), EARLY or LATE."""
    if PDL > 0:
        cuda.gdc_wait()
    if PDL == EARLY:
        cuda.gdc_launch_dependents()


@triton.jit
def release_next(PDL: tl.constexpr):
    """After a block's main work: lets the next kernel begin, if it may not already. Ending says the same."""
    if PDL == LATE:
        cuda.gdc_launch_dependents()
