"""OpenAI's chat completions and responses, and every server that speaks them (SGLang, vLLM, Ollama, ...)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

from agents.providers.base import Completion, Message, Stop
from agents.providers.sdk_provider import NO_KEY, PROGRAM_SCHEMA, SdkProvider, ToldError


class _OpenAI(SdkProvider):
    official = "https://api.openai.com/v1"
    key_variable = "OPENAI_API_KEY"
    url_variable = "OPENAI_BASE_URL"

    def _sdk(self) -> ModuleType:
        import openai

        return openai

    def _client(self, sdk: ModuleType) -> Any:
        return sdk.AsyncOpenAI(
            api_key=self._endpoint.key or NO_KEY,
            base_url=self._endpoint.base_url,
            timeout=self._patience.timeout_s,
            max_retries=self._patience.max_retries,
        )

    @property
    def _is_official(self) -> bool:
        return self._endpoint.base_url == self.official

    def _cache_key(self, system: str) -> dict[str, Any]:
        """Calls with one system prompt go where it is cached; other servers cache prefixes by themselves."""
        if not self._is_official or "prompt_cache_key" in self._refused:
            return {}
        return {"prompt_cache_key": hashlib.sha256(system.encode()).hexdigest()[:32]}


class OpenAIProvider(_OpenAI):
    """Chat completions of one model. See `SdkProvider`."""

    protocol = "openai"

    def _options(self, max_tokens: int, temperature: float | None, seed: int | None) -> dict[str, Any]:
        # OpenAI's reasoning models refuse the old name, most compatible servers know only the old name.
        name = "max_completion_tokens" if self._is_official else "max_tokens"
        schema = {"name": "program", "schema": PROGRAM_SCHEMA, "strict": True}
        return {
            name: max_tokens,
            "temperature": temperature,
            "seed": seed,
            "response_format": {"type": "json_schema", "json_schema": schema} if self.structured else None,
            "stream": True if self.stream else None,
            "stream_options": {"include_usage": True} if self.stream else None,
        }

    async def _request(
        self, client: Any, system: str, messages: Sequence[Message], options: dict[str, Any]
    ) -> Any:
        if "stream" not in options:
            options = {k: v for k, v in options.items() if k != "stream_options"}
        turns = [{"role": "system", "content": system}]
        turns += [{"role": m.role, "content": m.content} for m in messages]
        return await client.chat.completions.with_raw_response.create(
            model=self.model, messages=turns, **self._cache_key(system), **options
        )

    async def _read(self, raw: Any, attempts: int) -> Completion:
        answer = raw.parse()
        if hasattr(answer, "__aiter__"):
            answer = _joined([chunk async for chunk in answer])
        elif not getattr(answer, "choices", None) and (error := getattr(answer, "error", None)):
            raise ToldError(error)
        usage = answer.usage
        if usage is None:
            raise ValueError("the answer has no token counts, so its cost cannot be accounted")
        details = usage.prompt_tokens_details
        counted: dict[str, Any] = {
            "input_tokens": int(usage.prompt_tokens),
            "output_tokens": int(usage.completion_tokens),
            "model": str(answer.model),
            "cache_read_tokens": int(details.cached_tokens or 0) if details else 0,
            "attempts": attempts,
        }
        if not answer.choices:  # paid for, and nothing in it
            return Completion(text="", **counted)
        choice = answer.choices[0]
        message = choice.message
        stop: Stop = "end"
        if choice.finish_reason == "length":
            stop = "length"
        elif choice.finish_reason == "content_filter" or message.refusal:
            stop = "refusal"
        return Completion(text=_text(message.content) or _arguments(message.tool_calls), stop=stop, **counted)


class OpenAIResponsesProvider(_OpenAI):
    """OpenAI's responses protocol. See `SdkProvider`. It has no seed."""

    protocol = "openai-responses"

    def _options(self, max_tokens: int, temperature: float | None, seed: int | None) -> dict[str, Any]:
        schema = {"type": "json_schema", "name": "program", "schema": PROGRAM_SCHEMA, "strict": True}
        return {
            "max_output_tokens": max_tokens,
            "temperature": temperature,
            "text": {"format": schema} if self.structured else None,
            "store": False,
            "stream": True if self.stream else None,
        }

    async def _request(
        self, client: Any, system: str, messages: Sequence[Message], options: dict[str, Any]
    ) -> Any:
        turns = [{"role": m.role, "content": m.content} for m in messages]
        return await client.responses.with_raw_response.create(
            model=self.model, instructions=system, input=turns, **self._cache_key(system), **options
        )

    async def _read(self, raw: Any, attempts: int) -> Completion:
        answer = raw.parse()
        if hasattr(answer, "__aiter__"):
            ended = [
                e.response async for e in answer if e.type in ("response.completed", "response.incomplete")
            ]
            answer = ended[-1]
        usage, details = answer.usage, answer.usage.input_tokens_details
        parts = [part for item in answer.output if item.type == "message" for part in item.content]
        called = [item for item in answer.output if item.type == "function_call"]
        stop: Stop = "end"
        if answer.status == "incomplete":
            stop = "refusal" if answer.incomplete_details.reason == "content_filter" else "length"
        elif any(part.type == "refusal" for part in parts):
            stop = "refusal"
        words = "".join(part.text for part in parts if part.type == "output_text")
        return Completion(
            text=words or "\n".join(str(call.arguments) for call in called),
            input_tokens=int(usage.input_tokens),
            output_tokens=int(usage.output_tokens),
            model=str(answer.model),
            stop=stop,
            cache_read_tokens=int(details.cached_tokens or 0) if details else 0,
            attempts=attempts,
        )


def _joined(chunks: Sequence[Any]) -> Any:
    """A stream of chat completions as one answer.

    Raises:
        ValueError: for a stream that ended before the model did.
    """
    texts: list[str] = []
    calls: list[str] = []
    reason, refusal, usage, model = None, None, None, ""
    for chunk in chunks:
        model = chunk.model or model
        usage = chunk.usage or usage
        for choice in chunk.choices or ():
            reason = choice.finish_reason or reason
            texts.append(_text(choice.delta.content))
            refusal = choice.delta.refusal or refusal
            calls += [
                str(call.function.arguments or "") for call in choice.delta.tool_calls or () if call.function
            ]
    if reason is None:
        raise ValueError("the stream ended before the answer did")
    called = [SimpleNamespace(function=SimpleNamespace(arguments="".join(calls)))] if calls else None
    message = SimpleNamespace(content="".join(texts), refusal=refusal, tool_calls=called)
    return SimpleNamespace(
        model=model, usage=usage, choices=[SimpleNamespace(finish_reason=reason, message=message)]
    )


def _text(content: object) -> str:
    if content is None:
        return ""
    if isinstance(content, list):  # some servers send what others only take: a list of parts
        parts = [p if isinstance(p, dict) else getattr(p, "__dict__", {}) for p in content]
        return "".join(
            str(p.get("text") or "") for p in parts if p.get("type", "text") in ("text", "output_text")
        )
    if not isinstance(content, str):
        raise TypeError(f"content is {type(content).__name__}, not text")
    return content


def _arguments(calls: Iterable[Any] | None) -> str:
    """What a model said by calling a tool that nobody offered."""
    return "\n".join(str(call.function.arguments) for call in calls or () if getattr(call, "function", None))
