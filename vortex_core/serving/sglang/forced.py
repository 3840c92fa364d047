"""Answers that begin with given tokens, so that the step after them decodes what a question asks. For measuring.

SGLang's first new token comes from prefill, which is dense. A question whose last token is given as the answer's first
is read by a decode step, and so by the flow.
"""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.sampling.custom_logit_processor import CustomLogitProcessor

START = "vortex_start"  # token ids, in a request's `custom_params`
_TAKEN = "vortex_taken"

# A partial prefill's sample is thrown away but would count, so prompts must be prefilled whole.
OPTIONS = {"enable_custom_logit_processor": True, "chunked_prefill_size": -1}


class ForcedStart(CustomLogitProcessor):
    """Allows only the given token while a request has such left; SGLang keeps the parameters' object with it."""

    def __call__(
        self, logits: torch.Tensor, custom_param_list: list[dict[str, Any]] | None = None
    ) -> torch.Tensor:
        """logits `[request, vocabulary]`, changed in place."""
        for row, given in enumerate(custom_param_list or ()):
            taken = given.get(_TAKEN, 0)
            if taken < len(given[START]):
                logits[row] = float("-inf")
                logits[row, given[START][taken]] = 0.0
                given[_TAKEN] = taken + 1
        return logits
