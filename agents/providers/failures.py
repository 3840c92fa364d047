"""Failures of model servers as typed errors. Both protocols report them by HTTP status; only words differ."""

from __future__ import annotations

import re
from collections.abc import Mapping

from agents.base import Usage
from agents.errors import (
    NO_CREDIT,
    NOT_FOUND,
    OVERLOADED,
    RATE_LIMIT,
    REFUSED,
    REJECTED,
    TIMED_OUT,
    TOO_LONG,
    ProposerError,
)
from agents.providers.base import Endpoint, Patience

_TOO_LONG = re.compile(
    r"context[_ ](length|window)|(prompt|input)( is|'s length)? too long|maximum context|request_too_large",
    re.I,
)
_REFUSES = re.compile(
    r"unsupported|not (be )?(supported|allowed|permitted|available)|does ?n.t support|does not (support|allow)|"
    r"unrecogni[sz]ed|unknown|unexpected|extra (fields|inputs)|deprecated|not a valid|invalid",
    re.I,
)
_OUT_OF_MONEY = re.compile(
    r"insufficient_quota|exceeded your current quota|credit balance|billing|spend[_ ]limit", re.I
)


def attempts_sent(headers: Mapping[str, str]) -> int:
    """Requests sent, read from the header in which both SDKs count their retries."""
    count = headers.get("x-stainless-retry-count", "0")
    return 1 + (int(count) if count.isdigit() else 0)


def refused_option(status: int, detail: str, options: Mapping[str, object]) -> str | None:
    """The option among those sent that a server refuses by name, the one it names first; None for other refusals."""
    if status not in (400, 422) or not _REFUSES.search(detail):
        return None
    places = {name: m.start() for name in options if (m := re.search(rf"\b{name}\b", detail))}
    return min(places, key=lambda name: places[name]) if places else None


def from_status(status: int, detail: str, model: str, endpoint: Endpoint, attempts: int) -> ProposerError:
    """The error for an HTTP `status` with the server's own words in `detail`."""
    said = endpoint.redact(detail)
    times = f"{attempts} attempts" if attempts > 1 else "1 attempt"
    match status:
        case 400 | 402 | 403 | 429 if _OUT_OF_MONEY.search(detail):
            code, what, remedy = NO_CREDIT, "the account has no quota left", "add credit or switch the model"
        case 400 | 413 | 422 if status == 413 or _TOO_LONG.search(detail):
            code, what = TOO_LONG, "the prompt does not fit the model's context"
            remedy = "use a model with a longer context, or lower max_tokens"
        case 401 | 403:
            code, what, remedy = REFUSED, "access refused", _key_remedy(endpoint)
        case 404:
            code, what, remedy = NOT_FOUND, "not found", "check the model's name and the address"
        case 408:
            code, what, remedy = TIMED_OUT, f"the server gave up waiting ({times})", "try again later"
        case 429:
            code, what, remedy = RATE_LIMIT, f"rate limit ({times})", "wait, or lower the concurrency"
        case _ if status >= 500:
            code, what, remedy = OVERLOADED, f"the server fails with {status} ({times})", "try again later"
        case _:
            code, what = REJECTED, f"the request was rejected with {status}"
            remedy = "change the option it names; some models, for one, allow no temperature"
    return ProposerError(
        code.code, f"{model} at {endpoint.base_url}: {what}: {said}", remedy, usage=_free(attempts)
    )


def timed_out(model: str, endpoint: Endpoint, patience: Patience, attempts: int) -> ProposerError:
    """No answer within the time allowed; the provider may have worked, and charged, for it."""
    return ProposerError(
        "VA015",
        f"{model} at {endpoint.base_url} did not answer in time "
        f"({patience.timeout_s:g} s an attempt, {patience.deadline_s:g} s in all)",
        "raise timeout_s and deadline_s, or lower max_tokens",
        usage=Usage(calls=attempts),
        maybe_billed=True,
    )


def unreachable(
    model: str, endpoint: Endpoint, cause: object, attempts: int, *, begun: bool = False
) -> ProposerError:
    """The server could not be reached or hung up. `begun`: in the middle of an answer, which it may charge for."""
    return ProposerError(
        "VA016",
        f"{model} at {endpoint.base_url} cannot be reached in {attempts} attempts: {endpoint.redact(cause)}",
        "check the address, the network, and that the server runs",
        usage=Usage(calls=attempts) if begun else _free(attempts),
        maybe_billed=begun,
    )


def malformed(model: str, endpoint: Endpoint, what: object, attempts: int) -> ProposerError:
    """An answer that is not what the protocol promises."""
    return ProposerError(
        "VA020",
        f"{model} at {endpoint.base_url} answered outside the protocol: {endpoint.redact(what)}",
        "check that the address serves this protocol (openai: chat completions; anthropic: messages)",
        usage=Usage(calls=attempts),
        maybe_billed=True,
    )


def _free(attempts: int) -> Usage:
    """Requests that a server refused or never took: they have a price, and it is nothing."""
    return Usage(calls=attempts, dollars=0.0)


def _key_remedy(endpoint: Endpoint) -> str:
    if endpoint.withheld:
        return (
            f"{endpoint.key_variable} was not sent because the address is plain http to another machine; "
            "use https, or tunnel the server to localhost"
        )
    if endpoint.key is None:
        return f"export {endpoint.key_variable}=... with a key of this server"
    return f"check {endpoint.key_variable}, and that its account may use the model"
