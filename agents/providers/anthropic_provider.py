"""Anthropic's messages protocol."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from agents.prices import Price
from agents.providers import failures
from agents.providers.base import Completion, Message, Patience, Stop, resolve_endpoint

if TYPE_CHECKING:
    from anthropic.types import Message as Answer

OFFICIAL = "https://api.anthropic.com"
KEY_VARIABLE = "ANTHROPIC_API_KEY"
_NO_KEY = "none"  # the SDK would otherwise look for credentials in files of its own


class AnthropicProvider:
    """Messages of one model.

    The system prompt is marked for the provider's prompt cache: it is the same in every call of a
    campaign and by far the longest part.

    Args:
        model: as the server names it.
        base_url: None for `ANTHROPIC_BASE_URL`, else Anthropic itself. A trailing `/v1` is dropped.
        patience: waiting and retrying.
        price: (input, output) in dollars per million tokens, where the price table does not know the model.

    Raises:
        ProposerError: `VA010` if Anthropic itself is asked and `ANTHROPIC_API_KEY` is not set.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        *,
        patience: Patience | None = None,
        price: tuple[float | None, float | None] = (None, None),
    ) -> None:
        self.model = model
        self._patience = patience or Patience()
        if base_url is not None:
            base_url = base_url.rstrip("/").removesuffix("/v1")  # the SDK adds it
        self._endpoint = resolve_endpoint(
            base_url, key_variable=KEY_VARIABLE, url_variable="ANTHROPIC_BASE_URL", official=OFFICIAL
        )
        self.name = self._endpoint.label(f"anthropic:{model}", OFFICIAL)
        self.price = Price(model, self._endpoint.base_url, *price)

    async def complete(
        self,
        system: str,
        messages: Sequence[Message],
        max_tokens: int,
        temperature: float | None = None,
        seed: int | None = None,
    ) -> Completion:
        """See `Provider.complete`. The protocol has no seed; `seed` is ignored."""
        import anthropic

        # The SDK no longer names temperature, because newer models refuse it; older ones still take it.
        extra: dict[str, Any] | None = None if temperature is None else {"temperature": temperature}
        turns: list[Any] = [{"role": m.role, "content": m.content} for m in messages]
        patience, endpoint = self._patience, self._endpoint
        # A client belongs to the event loop it first runs in; one per call costs ~20 ms and needs no owner.
        async with anthropic.AsyncAnthropic(
            api_key=endpoint.key or _NO_KEY,
            base_url=endpoint.base_url,
            timeout=patience.timeout_s,
            max_retries=patience.max_retries,
        ) as client:
            try:
                async with asyncio.timeout(patience.deadline_s):
                    raw = await client.messages.with_raw_response.create(
                        model=self.model,
                        max_tokens=max_tokens,
                        system=[{"type": "text", "text": system, "cache_control": {"type": "ephemeral"}}],
                        messages=turns,
                        extra_body=extra,
                    )
                    attempts = 1 + raw.retries_taken
                    try:
                        return _read(await raw.parse(), attempts)
                    except (AttributeError, IndexError, TypeError, ValueError, anthropic.APIError) as error:
                        failure = failures.malformed(self.model, endpoint, error, attempts)
            except TimeoutError:
                failure = failures.timed_out(self.model, endpoint, patience, attempts=1)
            except anthropic.APITimeoutError as error:
                sent = failures.attempts_sent(error.request.headers)
                failure = failures.timed_out(self.model, endpoint, patience, sent)
            except anthropic.APIConnectionError as error:
                sent = failures.attempts_sent(error.request.headers)
                failure = failures.unreachable(self.model, endpoint, error.__cause__ or error, sent)
            except anthropic.APIStatusError as error:
                sent = failures.attempts_sent(error.request.headers)
                failure = failures.from_status(
                    error.status_code, str(error.message), self.model, endpoint, sent
                )
        # Raised outside the handlers: the SDK's error may quote the request and must not ride along.
        raise failure


def _read(answer: Answer, attempts: int) -> Completion:
    """The SDK does not validate answers: whatever is missing surfaces here as an ordinary Python error."""
    usage = answer.usage
    read, written = usage.cache_read_input_tokens or 0, usage.cache_creation_input_tokens or 0
    stop: Stop = "end"
    if answer.stop_reason in ("max_tokens", "model_context_window_exceeded"):
        stop = "length"
    elif answer.stop_reason == "refusal":
        stop = "refusal"
    return Completion(
        text="".join(block.text for block in answer.content if block.type == "text"),
        input_tokens=int(usage.input_tokens) + read + written,  # the protocol counts cached tokens apart
        output_tokens=int(usage.output_tokens),
        model=str(answer.model),
        stop=stop,
        cache_read_tokens=read,
        cache_write_tokens=written,
        attempts=attempts,
    )
