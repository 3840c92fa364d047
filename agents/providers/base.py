"""What a provider is: messages in, one completion out. Prompts and programs are not its business."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol
from urllib.parse import urlsplit

from agents.errors import ProposerError
from agents.prices import Price

Stop = Literal["end", "length", "refusal"]

_KEY_SHAPED = re.compile(r"\b(?:sk|pk|key)-[A-Za-z0-9_\-]{6,}")
_MAX_DETAIL = 300


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Literal["user", "assistant"]
    content: str


@dataclass(frozen=True)
class Completion:
    """One answer.

    Attributes:
        text: the visible answer; reasoning is not included.
        input_tokens: tokens of the prompt, cached ones included.
        output_tokens: tokens produced, reasoning included.
        model: the model as the server names it.
        stop: `end` (finished), `length` (cut at `max_tokens`), `refusal` (declined or filtered).
        cache_read_tokens: the part of `input_tokens` served from the provider's prompt cache.
        cache_write_tokens: the part of `input_tokens` written to it.
        attempts: requests sent, retries included.
    """

    text: str
    input_tokens: int
    output_tokens: int
    model: str
    stop: Stop = "end"
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    attempts: int = 1

    def __post_init__(self) -> None:
        """A server may report anything: no count is below zero, and what is cached is part of the prompt."""
        prompt, output = max(0, self.input_tokens), max(0, self.output_tokens)
        read = min(max(0, self.cache_read_tokens), prompt)
        written = min(max(0, self.cache_write_tokens), prompt - read)
        counts = {
            "input_tokens": prompt,
            "output_tokens": output,
            "cache_read_tokens": read,
            "cache_write_tokens": written,
        }
        for name, value in counts.items():
            object.__setattr__(self, name, value)


class Provider(Protocol):
    """A way to ask one model."""

    @property
    def name(self) -> str:
        """The specification that makes it."""
        ...

    @property
    def price(self) -> Price:
        """What its calls cost."""
        ...

    async def complete(
        self,
        system: str,
        messages: Sequence[Message],
        max_tokens: int,
        temperature: float | None = None,
        seed: int | None = None,
    ) -> Completion:
        """One answer of at most `max_tokens` tokens.

        `temperature` None leaves the model's own default, which some models do not let one change. `seed` is
        best effort and ignored by protocols that have none.

        Raises:
            ProposerError: `VA010`-`VA020`, after the bounded retries that can help.
        """
        ...


@dataclass(frozen=True)
class Patience:
    """How long to wait and how often to ask again.

    Attributes:
        timeout_s: seconds one attempt may take.
        deadline_s: seconds all attempts and the pauses between them may take together.
        max_retries: further attempts after a rate limit, an overload, a server fault or a lost connection.
    """

    timeout_s: float = 300.0
    deadline_s: float = 600.0
    max_retries: int = 3

    def __post_init__(self) -> None:
        if not (self.timeout_s > 0 and self.deadline_s > 0 and self.max_retries >= 0):
            raise ProposerError(
                "VA002", f"{self}: times must be positive, retries not negative", "change the option"
            )


@dataclass(frozen=True, repr=False)
class Endpoint:
    """Where requests go and with which key. The key is in no representation and no error."""

    base_url: str
    key: str | None
    key_variable: str
    withheld: bool = False

    def __repr__(self) -> str:
        return f"Endpoint({self.base_url!r}, key={'set' if self.key else 'none'})"

    def label(self, name: str, official: str) -> str:
        """`name`, with the address where it is not the `official` one."""
        return name if self.base_url == official else f"{name}@{self.base_url}"

    def without_key(self, text: str) -> str:
        """An answer without the key: a server may echo what it was sent, and answers are kept."""
        return text.replace(self.key, "[key]") if self.key else text

    def redact(self, text: object) -> str:
        """`text` without the key or anything shaped like one, on one line, bounded."""
        clean = " ".join(str(text).split())
        if self.key:
            clean = clean.replace(self.key, "[key]")
        clean = _KEY_SHAPED.sub("[key]", clean)
        return clean if len(clean) <= _MAX_DETAIL else clean[:_MAX_DETAIL] + "..."


def resolve_endpoint(
    base_url: str | None, *, key_variable: str, url_variable: str, official: str
) -> Endpoint:
    """Choose the address and the key.

    The address is `base_url`, else the environment's `url_variable`, else `official`. The key comes from
    `key_variable` only. The official address needs one; other servers may need none. A key never travels in
    clear text: over plain http it is sent to this machine alone.

    Raises:
        ProposerError: `VA010` without a key where one is needed, `VA001` for an address that cannot be used.
    """
    url = (base_url or os.environ.get(url_variable) or official).rstrip("/")
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        host = None
    if not host or parts.scheme not in ("http", "https"):
        raise ProposerError("VA001", "the server's address is not a URL", "write it as http://host:port/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ProposerError(
            "VA001",
            f"the address of {host} carries more than host, port and path",
            f"put a key into {key_variable}, never into the address",
        )
    key = os.environ.get(key_variable, "").strip() or None
    if key is None and url == official:
        raise ProposerError(
            "VA010",
            f"{key_variable} is not set",
            f"export {key_variable}=..., or use --proposer grammar, which needs no key",
        )
    withheld = key is not None and parts.scheme == "http" and not _is_this_machine(host)
    return Endpoint(url, None if withheld else key, key_variable, withheld)


def _is_this_machine(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
