"""OpenAI's chat completions, and every server that speaks them (SGLang, vLLM, Ollama, OpenRouter, ...)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from agents.prices import Price
from agents.providers import failures
from agents.providers.base import Completion, Message, Patience, Stop, resolve_endpoint

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion

OFFICIAL = "https://api.openai.com/v1"
KEY_VARIABLE = "OPENAI_API_KEY"
_NO_KEY = "none"  # the SDK insists on a value; servers without keys ignore it


class OpenAIProvider:
    """Chat completions of one model.

    Args:
        model: as the server names it.
        base_url: None for `OPENAI_BASE_URL`, else OpenAI itself.
        patience: waiting and retrying.
        price: (input, output) in dollars per million tokens, where the price table does not know the model.

    Raises:
        ProposerError: `VA010` if OpenAI itself is asked and `OPENAI_API_KEY` is not set.
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
        self._endpoint = resolve_endpoint(
            base_url, key_variable=KEY_VARIABLE, url_variable="OPENAI_BASE_URL", official=OFFICIAL
        )
        self.name = self._endpoint.label(f"openai:{model}", OFFICIAL)
        self.price = Price(model, self._endpoint.base_url, *price)

    async def complete(
        self,
        system: str,
        messages: Sequence[Message],
        max_tokens: int,
        temperature: float | None = None,
        seed: int | None = None,
    ) -> Completion:
        """See `Provider.complete`."""
        import openai

        options: dict[str, Any] = {}
        if temperature is not None:
            options["temperature"] = temperature
        if seed is not None:
            options["seed"] = seed
        # OpenAI's reasoning models refuse the old name, most compatible servers know only the old name.
        official = self._endpoint.base_url == OFFICIAL
        options["max_completion_tokens" if official else "max_tokens"] = max_tokens
        turns: list[Any] = [{"role": "system", "content": system}]
        turns += [{"role": m.role, "content": m.content} for m in messages]
        patience, endpoint = self._patience, self._endpoint
        # A client belongs to the event loop it first runs in; one per call costs ~20 ms and needs no owner.
        async with openai.AsyncOpenAI(
            api_key=endpoint.key or _NO_KEY,
            base_url=endpoint.base_url,
            timeout=patience.timeout_s,
            max_retries=patience.max_retries,
        ) as client:
            try:
                async with asyncio.timeout(patience.deadline_s):
                    raw = await client.chat.completions.with_raw_response.create(
                        model=self.model, messages=turns, **options
                    )
                attempts = 1 + raw.retries_taken
                try:
                    return _read(raw.parse(), attempts)
                except (AttributeError, IndexError, TypeError, ValueError, openai.APIError) as error:
                    failure = failures.malformed(self.model, endpoint, error, attempts)
            except TimeoutError:
                failure = failures.timed_out(self.model, endpoint, patience, attempts=1)
            except openai.APITimeoutError as error:
                sent = failures.attempts_sent(error.request.headers)
                failure = failures.timed_out(self.model, endpoint, patience, sent)
            except openai.APIConnectionError as error:
                sent = failures.attempts_sent(error.request.headers)
                failure = failures.unreachable(self.model, endpoint, error.__cause__ or error, sent)
            except openai.APIStatusError as error:
                sent = failures.attempts_sent(error.request.headers)
                detail = f"{error.code or ''} {error.message}"
                failure = failures.from_status(error.status_code, detail, self.model, endpoint, sent)
        # Raised outside the handlers: the SDK's error may quote the request and must not ride along.
        raise failure


def _read(answer: ChatCompletion, attempts: int) -> Completion:
    """The SDK does not validate answers: whatever is missing surfaces here as an ordinary Python error."""
    choice = answer.choices[0]
    usage = answer.usage
    if usage is None:
        raise ValueError("the answer has no token counts, so its cost cannot be accounted")
    stop: Stop = "end"
    if choice.finish_reason == "length":
        stop = "length"
    elif choice.finish_reason == "content_filter" or choice.message.refusal:
        stop = "refusal"
    details = usage.prompt_tokens_details
    return Completion(
        text=_text(choice.message.content),
        input_tokens=int(usage.prompt_tokens),
        output_tokens=int(usage.completion_tokens),
        model=str(answer.model),
        stop=stop,
        cache_read_tokens=(details.cached_tokens or 0) if details else 0,
        attempts=attempts,
    )


def _text(content: object) -> str:
    if content is None:
        return ""
    if not isinstance(content, str):
        raise TypeError(f"content is {type(content).__name__}, not text")
    return content
