"""What is asked of the scheduler, and what it gives back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vortex_core.engine.decode.sampling import GREEDY, Sampling

Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class Request:
    """A prompt to continue. `sampling` is greedy by default.

    Attributes:
        stop_ids: it ends with the first of these it produces.
        stop_strings: it ends as soon as its text contains one of these, which the text then leaves out.
    """

    token_ids: Sequence[int]
    max_new_tokens: int
    stop_ids: Sequence[int] = ()
    sampling: Sampling = GREEDY
    stop_strings: Sequence[str] = ()


@dataclass(frozen=True)
class Token:
    """One token of a stream, as soon as it is produced.

    Attributes:
        request_id: which request, as `Scheduler.submit` returned it (in `Engine.stream`: its index).
        token: what it produced.
        logprob: of that token.
        text: what can be shown now, possibly nothing yet; empty for an engine without a tokenizer.
        finish: why it ended, None while it goes on.
    """

    request_id: int
    token: int
    logprob: float
    text: str
    finish: Finish | None


@dataclass(frozen=True)
class RequestOutput:
    """What a finished request produced, and how long it took.

    Attributes:
        tokens: what it produced, a final stop id included.
        logprobs: of each of them.
        finish: `stop` where it ended with a stop id or string, else `length`.
        first_token_seconds: from submission to the first token (TTFT).
        seconds: from submission to the end.
        text: the tokens as text up to a stop string; None for an engine without a tokenizer.
        preemptions: how often it gave its blocks back to others and was computed again.
    """

    tokens: list[int]
    logprobs: list[float]
    finish: Finish
    first_token_seconds: float
    seconds: float
    text: str | None = None
    preemptions: int = 0
