"""What the clients of both SDKs share: pace, patience, parameters that a server refuses, failures as typed errors.

The SDKs retry by themselves (rate limits with Retry-After in seconds or as a date, overloads, lost connections), within
the deadline kept here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any, ClassVar

from agents.errors import OVERLOADED, RATE_LIMIT, ProposerError
from agents.prices import Price
from agents.providers import failures
from agents.providers.base import Completion, Message, Patience, resolve_endpoint
from agents.providers.pace import Pace

NO_KEY = "none"  # the SDKs insist on a value, or would look for credentials in files of their own
PROGRAM_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "idea": {"type": "string", "description": "one sentence: what the program exploits"},
        "program": {"type": "string", "description": "the whole Python file, or what the request asks for"},
    },
    "required": ["idea", "program"],
    "additionalProperties": False,
}
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 8.0  # seconds before a gateway is asked again
_RENAMED = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}


class ToldError(Exception):
    """A failure that a server sends with status 200.

    Args:
        error: what it says; its `code` may be the status that was meant.
    """

    def __init__(self, error: object) -> None:
        fields = error if isinstance(error, dict) else getattr(error, "__dict__", {})
        code = fields.get("code") or fields.get("status")
        meant = (
            int(code) if isinstance(code, int | str) and str(code).isdecimal() and len(str(code)) == 3 else 0
        )
        self.status = meant if 400 <= meant < 600 else 500
        self.said = str(fields.get("message") or error)
        super().__init__(self.said)


class _ToldProposerError(ProposerError):
    """What such a failure becomes; it may be sent again."""

    @classmethod
    def of(cls, error: ProposerError) -> _ToldProposerError:
        return cls(error.code, error.message, error.remedy, usage=error.usage)


class SdkProvider:
    """One model behind one SDK. Subclasses say how a request is worded and an answer is read.

    What a server refuses (an option that its model does not take) is left out, or named as it wants it, from then on:
    refusals cost nothing.

    Args:
        model: as the server names it.
        base_url: None for the environment's, else the official one.
        patience: waiting and retrying.
        price: (input, output) in dollars per million tokens, where the price table does not know the model.
        stream: take answers as streams: a connection that breaks is noticed at once, and no gateway gives up on a
            long answer.
        structured: ask for `PROGRAM_SCHEMA` instead of words.

    Raises:
        ProposerError: `VA010` if the official server is asked and its key is not set.
    """

    protocol: ClassVar[str]
    official: ClassVar[str]
    key_variable: ClassVar[str]
    url_variable: ClassVar[str]

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
        self.model = model
        self.stream = stream
        self.structured = structured
        self._patience = patience or Patience()
        self._pace = Pace()
        self._refused: set[str] = set()
        self._endpoint = resolve_endpoint(
            base_url, key_variable=self.key_variable, url_variable=self.url_variable, official=self.official
        )
        self.name = self._endpoint.label(f"{self.protocol}:{model}", self.official)
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
        async with self._pace.turn() as turn:
            options, tries = self._options(max_tokens, temperature, seed), 0
            while True:
                given = {name: value for name, value in options.items() if value is not None}
                for name in self._refused & given.keys():
                    value = given.pop(name)
                    if (other := _RENAMED.get(name)) is not None and other not in self._refused:
                        given[other] = value
                found = await self._send(system, messages, given)
                if isinstance(found, Completion):
                    turn.pushed = found.attempts > 1
                    return found
                if isinstance(found, str):
                    self._refused.add(found)
                    continue
                turn.pushed = found.code in (RATE_LIMIT.code, OVERLOADED.code)
                if (
                    isinstance(found, _ToldProposerError)
                    and turn.pushed
                    and tries < self._patience.max_retries
                ):
                    tries += 1  # the SDK repeats what comes with a status; a gateway's own word it takes for an answer
                    await asyncio.sleep(min(_FIRST_PAUSE * 2**tries, _LONGEST_PAUSE))
                    continue
                # Raised outside the handlers: the SDK's error may quote the request and must not ride along.
                raise found

    async def _send(
        self, system: str, messages: Sequence[Message], options: dict[str, Any]
    ) -> Completion | ProposerError | str:
        """One request with the SDK's retries: the answer, the failure, or the option that the server refuses."""
        sdk = self._sdk()
        patience, endpoint, model = self._patience, self._endpoint, self.model
        raw: Any = None
        # A client belongs to the event loop it first runs in; one per call costs ~20 ms and needs no owner.
        async with self._client(sdk) as client:
            try:
                async with asyncio.timeout(patience.deadline_s):
                    raw = await self._request(client, system, messages, options)
                    answer = await self._read(raw, 1 + raw.retries_taken)
                    return replace(answer, text=endpoint.without_key(answer.text))
            except ToldError as error:
                within = failures.from_status(
                    error.status, error.said, model, endpoint, 1 + raw.retries_taken
                )
                return _ToldProposerError.of(within)
            except TimeoutError:
                return failures.timed_out(model, endpoint, patience, attempts=1)
            except sdk.APITimeoutError as error:
                sent = failures.attempts_sent(error.request.headers)
                return failures.timed_out(model, endpoint, patience, sent)
            except sdk.APIConnectionError as error:
                sent = failures.attempts_sent(error.request.headers)
                return failures.unreachable(
                    model, endpoint, error.__cause__ or error, sent, begun=raw is not None
                )
            except sdk.APIStatusError as error:
                detail = f"{getattr(error, 'code', None) or ''} {error.message}"
                named = failures.refused_option(error.status_code, detail, options)
                if named is not None:
                    return named
                sent = failures.attempts_sent(error.request.headers)
                return failures.from_status(error.status_code, detail, model, endpoint, sent)
            except (
                AttributeError,
                LookupError,
                TypeError,
                ValueError,
                OverflowError,
                RecursionError,
                sdk.APIError,
            ) as error:
                return failures.malformed(model, endpoint, error, 1 + getattr(raw, "retries_taken", 0))
            except Exception as error:
                if raw is None:
                    raise
                # An answer that had begun: the transport's own errors come through as they are.
                return failures.unreachable(model, endpoint, error, 1 + raw.retries_taken, begun=True)

    # ---- what an SDK says ---------------------------------------------------------------------------------

    def _sdk(self) -> ModuleType:
        raise NotImplementedError

    def _client(self, sdk: ModuleType) -> Any:
        raise NotImplementedError

    def _options(self, max_tokens: int, temperature: float | None, seed: int | None) -> dict[str, Any]:
        """Everything about a request that a server may refuse; what is None is left out."""
        raise NotImplementedError

    async def _request(
        self, client: Any, system: str, messages: Sequence[Message], options: dict[str, Any]
    ) -> Any:
        """Send it; returns the SDK's raw response."""
        raise NotImplementedError

    async def _read(self, raw: Any, attempts: int) -> Completion:
        """The SDKs do not validate answers: whatever is missing surfaces here as an ordinary Python error."""
        raise NotImplementedError
