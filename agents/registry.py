"""Proposers by name: `grammar`, `openai:MODEL`, `anthropic:MODEL`, `openai:MODEL@http://host/v1`, `a,b`.

A third party adds one through an entry point of the group `vortex_search.proposers`. Its name is the part of
the specification before the colon; its value is a factory `(argument: str, *, language: str,
limit: SpendLimit | None, **options) -> Proposer`, where `argument` is the part after the colon. A further service
that answers messages is a provider: an entry point of the group `vortex_search.providers`, whose value is called
as `agents.providers.openai_provider.OpenAIProvider` is (docs/extending/proposer.md).
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from agents.base import Proposer
from agents.ensemble import EnsembleProposer
from agents.errors import ProposerError
from agents.llm import LLMProposer
from agents.prices import SpendLimit
from agents.providers.base import Patience, Provider
from vortex_core.errors import VortexError
from vortex_core.registry import Registry

T = TypeVar("T")
Language = str | Callable[[], str]

PROPOSERS: Registry[Callable[..., Proposer]] = Registry(
    "proposer",
    {"grammar": "agents.grammar.proposer:GrammarProposer", "inbox": "agents.inbox:InboxProposer"},
    group="vortex_search.proposers",
    code="VA001",
)
PROVIDERS: Registry[Callable[..., Provider]] = Registry(
    "provider",
    {
        "anthropic": "agents.providers.anthropic_provider:AnthropicProvider",
        "openai": "agents.providers.openai_provider:OpenAIProvider",
        "openai-responses": "agents.providers.openai_provider:OpenAIResponsesProvider",
    },
    group="vortex_search.providers",
    code="VA001",
)
_EXAMPLES = "grammar, openai:MODEL, anthropic:MODEL, openai:MODEL@http://host:port/v1, or several with commas"
_SERVER = re.compile(r"@(?=https?:)")


@dataclass(frozen=True)
class LLMOptions:
    """What can be set for a language model. The times and retries are those of `Patience`.

    Attributes:
        input_price: dollars per million prompt tokens, for models the price table does not know.
        output_price: dollars per million produced tokens; given together with `input_price`.
        stream: take answers as streams.
        structured: ask for a JSON object of idea and program, where the server offers that.
    """

    max_tokens: int = 16_000
    temperature: float | None = None
    timeout_s: float = Patience.timeout_s
    deadline_s: float = Patience.deadline_s
    max_retries: int = Patience.max_retries
    input_price: float | None = None
    output_price: float | None = None
    stream: bool = False
    structured: bool = False


def names() -> list[str]:
    """The names a specification may begin with."""
    return sorted({*PROPOSERS.names(), *PROVIDERS.names()})


def make_proposer(
    spec: str, *, language: Language = "", limit: SpendLimit | None = None, **options: Any
) -> Proposer:
    """The proposer that `spec` names.

    Args:
        spec: `NAME`, `NAME:ARGUMENT`, or several separated by commas, which become an ensemble.
        language: the language reference, or a function that writes it, for proposers that ask a model.
        limit: spending limit shared by all members.
        options: settings of the proposer (`LLMOptions` for models, the constructor's for `grammar`).
            In an ensemble each member takes those it has; one that no member has is refused.

    Raises:
        ProposerError: `VA001` for an unknown name, `VA002` for an unknown or bad option, `VA003` if it
            cannot be loaded, `VA010` for a missing key.
    """
    members = [part.strip() for part in spec.split(",")]
    if not all(members):
        raise ProposerError("VA001", f"proposer {spec!r} has an empty part", f"write {_EXAMPLES}")
    factories = [_factory(member) for member in members]
    unknown = set(options).difference(*(f.options for f in factories if f.options is not None))
    if unknown and all(f.options is not None for f in factories):
        known = sorted({name for f in factories for name in f.options or ()})
        raise ProposerError(
            "VA002",
            f"proposer {spec!r} has no option {', '.join(sorted(unknown))}",
            f"options are {', '.join(known)}" if known else "it has none",
        )
    made = [
        f.make(language, limit, {k: v for k, v in options.items() if f.options is None or k in f.options})
        for f in factories
    ]
    return made[0] if len(made) == 1 else EnsembleProposer(made)


@dataclass(frozen=True)
class _Factory:
    """How to build one member. `options` None: it takes whatever it is given."""

    make: Callable[[Language, SpendLimit | None, Mapping[str, Any]], Proposer]
    options: frozenset[str] | None


def _factory(spec: str) -> _Factory:
    name, _, argument = spec.partition(":")
    if name in PROVIDERS.names():
        return _model(name, argument)
    if name not in PROPOSERS.names():
        known = names()
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ProposerError(
            "VA001",
            f"no proposer is called {name!r}; there are {', '.join(known)}",
            f"{hint}write {_EXAMPLES}",
        )
    if name == "grammar":  # ours takes no argument, and says which options it has
        if argument:
            raise ProposerError("VA001", f"grammar takes no argument, got {argument!r}", "write grammar")
        grammar = _load(PROPOSERS, name)
        return _Factory(
            lambda language, limit, given: grammar(**given),
            frozenset(inspect.signature(grammar).parameters),
        )
    return _Factory(
        lambda language, limit, given: _third_party(name, argument, _words(language), limit, given), None
    )


def _model(protocol: str, argument: str) -> _Factory:
    model, *rest = _SERVER.split(argument, maxsplit=1)
    base_url = rest[0] if rest else None
    if not model.strip():
        raise ProposerError("VA001", f"{protocol} needs a model", f"write {protocol}:MODEL")

    def make(language: Language, limit: SpendLimit | None, given: Mapping[str, Any]) -> Proposer:
        options = LLMOptions(**given)
        _check_numbers(options)
        patience = Patience(options.timeout_s, options.deadline_s, options.max_retries)
        price = (options.input_price, options.output_price)
        chosen = {n: True for n in ("stream", "structured") if getattr(options, n)}
        provider = _load(PROVIDERS, protocol)(model, base_url, patience=patience, price=price, **chosen)
        return LLMProposer(
            provider,
            language=_words(language),
            limit=limit,
            max_tokens=options.max_tokens,
            temperature=options.temperature,
        )

    return _Factory(make, frozenset(inspect.signature(LLMOptions).parameters))


def _check_numbers(options: LLMOptions) -> None:
    for name, value in vars(options).items():
        if isinstance(getattr(LLMOptions, name), bool):
            if not isinstance(value, bool):
                raise ProposerError("VA002", f"{name} is {value!r}", "give true or false")
            continue
        whole = name in ("max_tokens", "max_retries")
        fits = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        if not fits and not (value is None and getattr(LLMOptions, name) is None):
            kind = "a whole number" if whole else "a number"
            raise ProposerError("VA002", f"{name} is {value!r}", f"give {kind}")


def _third_party(
    name: str, argument: str, language: str, limit: SpendLimit | None, given: Mapping[str, Any]
) -> Proposer:
    try:
        return _load(PROPOSERS, name)(argument, language=language, limit=limit, **given)
    except VortexError:
        raise
    except Exception as error:  # whatever a stranger's factory raises
        raise _not_loaded(name, error) from error


def _load(registry: Registry[T], name: str) -> T:
    try:
        return registry.get(name)
    except ModuleNotFoundError as error:
        raise _not_loaded(name, error) from error
    except VortexError as error:
        raise ProposerError("VA003", error.message, error.remedy) from error


def _words(language: Language) -> str:
    return language if isinstance(language, str) else language()


def _not_loaded(name: str, error: Exception) -> ProposerError:
    return ProposerError(
        "VA003", f"proposer {name!r} cannot be loaded: {error}", "reinstall the distribution that provides it"
    )
