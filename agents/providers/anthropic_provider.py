"""Anthropic's messages protocol."""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from agents.prices import Price
from agents.providers.base import Completion, Message, Patience, Stop
from agents.providers.sdk_provider import NO_KEY, PROGRAM_SCHEMA, SdkProvider

_TOOL = "submit_program"


class AnthropicProvider(SdkProvider):
    """Messages of one model. See `SdkProvider`. The protocol has no seed.

    The system prompt is marked for the provider's prompt cache: it is the same in every call of a
    campaign and by far the longest part. A trailing `/v1` of `base_url` is dropped: the SDK adds it.
    """

    protocol = "anthropic"
    official = "https://api.anthropic.com"
    key_variable = "ANTHROPIC_API_KEY"
    url_variable = "ANTHROPIC_BASE_URL"

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        *,
        patience: Patience | None = None,
        price: tuple[float | None, float | None] = (None, None),
        stream: bool = False,
        structured: bool = False,
    ) -> None:
        base_url = None if base_url is None else base_url.rstrip("/").removesuffix("/v1")
        super().__init__(
            model, base_url, patience=patience, price=price, stream=stream, structured=structured
        )
        self.price = Price(model, self._endpoint.base_url, *price)

    def _sdk(self) -> ModuleType:
        import anthropic

        return anthropic

    def _client(self, sdk: ModuleType) -> Any:
        return sdk.AsyncAnthropic(
            api_key=self._endpoint.key or NO_KEY,
            base_url=self._endpoint.base_url,
            timeout=self._patience.timeout_s,
            max_retries=self._patience.max_retries,
        )

    def _options(self, max_tokens: int, temperature: float | None, seed: int | None) -> dict[str, Any]:
        tool = {"name": _TOOL, "description": "Hand in the program.", "input_schema": PROGRAM_SCHEMA}
        return {
            "max_tokens": max_tokens,
            "temperature": temperature,
            "tools": [tool] if self.structured else None,
            "tool_choice": {"type": "tool", "name": _TOOL} if self.structured else None,
            "stream": True if self.stream else None,
        }

    async def _request(
        self, client: Any, system: str, messages: Sequence[Message], options: dict[str, Any]
    ) -> Any:
        known = {k: options[k] for k in ("max_tokens", "stream", "tools", "tool_choice") if k in options}
        # The SDK no longer names temperature, because newer models refuse it; older ones still take it.
        extra = {"temperature": options["temperature"]} if "temperature" in options else None
        return await client.messages.with_raw_response.create(
            model=self.model,
            system=[{"type": "text", "text": system, "cache_control": {"type": "ephemeral"}}],
            messages=[{"role": m.role, "content": m.content} for m in messages],
            extra_body=extra,
            **known,
        )

    async def _read(self, raw: Any, attempts: int) -> Completion:
        answer = await raw.parse()
        if hasattr(answer, "__aiter__"):
            return await _streamed(answer, attempts)
        usage = answer.usage
        parts = [block.text for block in answer.content if block.type == "text"]
        handed = [json.dumps(block.input) for block in answer.content if block.type == "tool_use"]
        return _completion(
            "".join(handed) if handed else "".join(parts),
            answer.model,
            answer.stop_reason,
            attempts,
            fresh=int(usage.input_tokens),
            read=int(usage.cache_read_input_tokens or 0),
            written=int(usage.cache_creation_input_tokens or 0),
            output=int(usage.output_tokens),
        )


async def _streamed(events: Any, attempts: int) -> Completion:
    """A stream of events as one answer.

    Raises:
        ValueError: for a stream that ended before the model did.
    """
    texts: list[str] = []
    handed: list[str] = []
    model, reason, output, usage = "", None, None, None
    async for event in events:
        if event.type == "message_start":
            model, usage = event.message.model, event.message.usage
        elif event.type == "content_block_delta" and event.delta.type == "text_delta":
            texts.append(event.delta.text)
        elif event.type == "content_block_delta" and event.delta.type == "input_json_delta":
            handed.append(event.delta.partial_json)
        elif event.type == "message_delta":
            reason, output = event.delta.stop_reason, event.usage.output_tokens
    if reason is None or usage is None or output is None:
        raise ValueError("the stream ended before the answer did")
    return _completion(
        "".join(handed) if handed else "".join(texts),
        model,
        reason,
        attempts,
        fresh=int(usage.input_tokens),
        read=int(usage.cache_read_input_tokens or 0),
        written=int(usage.cache_creation_input_tokens or 0),
        output=int(output),
    )


def _completion(
    text: str,
    model: str,
    reason: str | None,
    attempts: int,
    *,
    fresh: int,
    read: int,
    written: int,
    output: int,
) -> Completion:
    stop: Stop = "end"
    if reason in ("max_tokens", "model_context_window_exceeded"):
        stop = "length"
    elif reason == "refusal":
        stop = "refusal"
    return Completion(
        text=text,
        input_tokens=fresh + read + written,  # the protocol counts cached tokens apart
        output_tokens=output,
        model=str(model),
        stop=stop,
        cache_read_tokens=read,
        cache_write_tokens=written,
        attempts=attempts,
    )
