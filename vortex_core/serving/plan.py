"""Which flows a server's captured decode steps can run."""

from __future__ import annotations

from vortex_core.ir.knobs import Knobs
from vortex_core.ir.program import Program
from vortex_core.serving.errors import unsupported_flow


def check_servable(program: Program, knobs: Knobs) -> None:
    """Raises `VE034` for what a decode step that is captured once cannot do."""
    if knobs.reuse_steps > 1:
        raise unsupported_flow(
            f"reuse_steps={knobs.reuse_steps}: a captured step selects at every step",
            "set reuse_steps=1; selections are the same at the steps that select",
        )
    if program.needs_mass:
        raise unsupported_flow(
            "it reads attention mass of earlier steps", "serve it with the embedded engine"
        )
    if program.request_states:
        raise unsupported_flow(
            "it keeps states of the request from step to step", "serve it with the embedded engine"
        )
    if program.reads_rotary:
        raise unsupported_flow(
            "it reads rotary frequencies, which are not read from a server's model",
            "serve it with the embedded engine",
        )
