"""What the engine reports."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SwapReport:
    """What loading a flow cost.

    Attributes:
        seconds: all of it: compiling, rebuilding the states of pinned prompts, capturing graphs.
        state_bytes: bytes of all page states.
        ir_hash: the program that decodes now.
        capture_seconds: of `seconds`, what capturing the shape in use took (0 without a GPU).
        memory_before: bytes allocated on the device before, all tensors of this process (0 without a GPU).
        memory_after: and after.
    """

    seconds: float
    state_bytes: int
    ir_hash: str
    capture_seconds: float = 0.0
    memory_before: int = 0
    memory_after: int = 0


@dataclass(frozen=True)
class DecodeResult:
    """What a decode produced, and proof of what ran.

    Attributes:
        tokens: produced (or forced) token ids of each prompt, a final stop id included.
        logprobs: natural-log probability of each of them, from float32 logits at temperature 1.
        step_seconds: wall time of each batched step; of steps that ran ahead on a GPU, by its clock.
        density: pages attended of all pages, over the sparse layers and steps; 1 for dense attention.
        ir_hash: the program that ran; `dense` where none was loaded.
        attention_seconds: of the steps' time, in the model's attention; None where steps are not timed inside.
    """

    tokens: list[list[int]]
    logprobs: list[list[float]]
    step_seconds: list[float]
    density: float
    ir_hash: str
    attention_seconds: float | None = None
