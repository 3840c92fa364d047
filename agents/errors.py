"""What can go wrong between asking for a program and having one. Codes `VA...`.

| code  | meaning                                                | retrying helps |
|-------|--------------------------------------------------------|----------------|
| VA001 | proposer specification not understood                  | no  |
| VA002 | option unknown or out of range                         | no  |
| VA003 | proposer not installed, or failed to load              | no  |
| VA004 | request lacks what its kind needs                      | no  |
| VA010 | no key in the environment                              | no  |
| VA011 | key refused, or not allowed to use the model           | no  |
| VA012 | rate limit                                             | yes |
| VA013 | account out of quota or credit                         | no  |
| VA014 | server overloaded or failing                           | yes |
| VA015 | no answer in time                                      | yes |
| VA016 | server not reached                                     | yes |
| VA017 | prompt longer than the model's context                 | no  |
| VA018 | no such model or address                               | no  |
| VA019 | request rejected for another reason                    | no  |
| VA020 | answer not in the protocol's form                      | yes |
| VA021 | the model declined                                     | yes |
| VA022 | answer cut off at the token limit                      | yes |
| VA023 | no program in the answer                               | yes |
| VA030 | spending limit reached                                 | no  |
| VA031 | spending limit in dollars on a model without a price   | no  |
"""

from __future__ import annotations

from typing import Any

from agents.base import Usage
from vortex_core.errors import VortexError

RETRYABLE = frozenset({"VA012", "VA014", "VA015", "VA016", "VA020", "VA021", "VA022", "VA023"})


class ProposerError(VortexError):
    """A proposal that did not come about.

    Attributes:
        usage: what the failed attempt cost; a model that answers without a program has still been paid.
        maybe_billed: the provider may have charged for work whose answer never arrived (timeouts).
    """

    def __init__(
        self,
        code: str,
        message: str,
        remedy: str = "",
        *,
        usage: Usage | None = None,
        maybe_billed: bool = False,
    ) -> None:
        super().__init__(code, message, remedy)
        self.usage = usage or Usage()
        self.maybe_billed = maybe_billed

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed later without anybody changing anything."""
        return self.code in RETRYABLE

    def to_json(self) -> dict[str, Any]:
        """`VortexError.to_json` with `retryable` and `usage` added."""
        return {**super().to_json(), "retryable": self.retryable, "usage": dict(vars(self.usage))}


class BudgetExceededError(ProposerError):
    """The spending limit leaves no room for another call (`VA030`), or cannot be enforced (`VA031`)."""
