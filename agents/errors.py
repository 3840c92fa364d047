"""What can go wrong between asking for a program and having one. Codes `VA...`."""

from __future__ import annotations

from typing import Any

from agents.base import Usage
from vortex_core.errors import ErrorCode, Fault, VortexError, declare


def _declare(code: str, title: str, rule: str, fault: Fault, *, retryable: bool = False) -> ErrorCode:
    return declare(code, title, rule, fault, retryable=retryable, home="agents")


# ---- what a user wrote
_declare(
    "VA001",
    "proposer not understood",
    "a proposer is grammar, anthropic:MODEL or openai:MODEL, with @URL for other servers; several take commas",
    "user",
)
_declare("VA002", "bad option", "options of a proposer exist and are in their ranges", "user")
_declare("VA003", "proposer not installed", "what provides the proposer is installed and loads", "user")
_declare("VA004", "incomplete request", "a request has what its kind needs", "infrastructure")
# ---- what a server answered; `user`: nothing helps until a key, an account or a name is mended
_declare("VA010", "no key", "the key is in the environment", "user")
REFUSED = _declare("VA011", "access refused", "the key may use the model", "user")
RATE_LIMIT = _declare(
    "VA012", "rate limit", "requests stay within the account's rate", "infrastructure", retryable=True
)
NO_CREDIT = _declare("VA013", "account without credit", "the account has credit left", "user")
OVERLOADED = _declare(
    "VA014", "server overloaded or failing", "the server answers", "infrastructure", retryable=True
)
TIMED_OUT = _declare(
    "VA015", "no answer in time", "an answer comes within its deadline", "infrastructure", retryable=True
)
_declare("VA016", "server not reached", "the server is reached", "infrastructure", retryable=True)
TOO_LONG = _declare("VA017", "prompt too long", "a prompt fits the model's context", "infrastructure")
NOT_FOUND = _declare("VA018", "no such model or address", "the model exists at the address", "user")
REJECTED = _declare("VA019", "request rejected", "the server takes the request's options", "infrastructure")
_declare(
    "VA020",
    "answer outside the protocol",
    "answers have the protocol's form",
    "infrastructure",
    retryable=True,
)
# ---- what a model wrote
_declare("VA021", "the model declined", "the model answers", "infrastructure", retryable=True)
_declare("VA022", "answer cut off", "an answer ends within max_tokens", "infrastructure", retryable=True)
_declare("VA023", "no program in the answer", "an answer holds a program", "infrastructure", retryable=True)
_declare(
    "VA025",
    "edits do not fit",
    "edits quote lines of the parent as they stand",
    "infrastructure",
    retryable=True,
)
_declare(
    "VA026",
    "no knobs in the answer",
    "an answer holds knobs that are legal",
    "infrastructure",
    retryable=True,
)
_declare(
    "VA033", "what was handed in is gone", "a program that was handed in can be read", "user", retryable=True
)
# ---- what is used up
_declare(
    "VA024",
    "nothing new found",
    "the space of programs holds one that was not tried",
    "budget",
    retryable=True,
)
_declare("VA029", "nothing more is handed in", "programs are handed in while the search waits", "budget")
_declare("VA030", "spending limit reached", "the next call fits the limit", "budget")
_declare("VA031", "no price for a dollar limit", "a model's price is known where dollars are limited", "user")


class ProposerError(VortexError):
    """A proposal that did not come about.

    Attributes:
        usage: what the failed attempt cost; a model that answers without a program has still been paid.
        maybe_billed: the provider may have charged for work whose answer never arrived (timeouts).
        proposer: the member of an ensemble that failed; empty where there is only one to ask.
        kind: what that member was asked, as `Proposal.kind`.
    """

    def __init__(
        self,
        code: str,
        message: str,
        remedy: str = "",
        *,
        fault: Fault | None = None,
        retryable: bool | None = None,
        usage: Usage | None = None,
        maybe_billed: bool = False,
        proposer: str = "",
    ) -> None:
        super().__init__(code, message, remedy, fault=fault, retryable=retryable)
        self.usage = usage or Usage()
        self.maybe_billed = maybe_billed
        self.proposer = proposer
        self.kind = ""

    def to_json(self) -> dict[str, Any]:
        """`VortexError.to_json` with `usage` added."""
        return {**super().to_json(), "usage": dict(vars(self.usage))}


class BudgetExceededError(ProposerError):
    """The spending limit leaves no room for another call (`VA030`), or cannot be enforced (`VA031`)."""
