from __future__ import annotations

import asyncio
import subprocess
import sys
import types
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

from agents.base import Proposal, ProposalRequest, Proposer
from agents.ensemble import EnsembleProposer
from agents.errors import ProposerError
from agents.grammar.proposer import GrammarProposer
from agents.llm import LLMProposer
from agents.prices import Price, SpendLimit
from agents.providers.base import Patience
from agents.registry import PROPOSERS, PROVIDERS, make_proposer, names
from vortex_core import registry

from .conftest import FLOW, LANGUAGE

LOCAL = "http://127.0.0.1:9/v1"


class Echo(Proposer):
    """A third party's proposer."""

    def __init__(
        self, argument: str, *, language: str, limit: SpendLimit | None, shout: bool = False
    ) -> None:
        self.name = f"echo:{argument}"
        self.given = (language, limit, shout)

    async def propose(self, request: ProposalRequest) -> Proposal:
        return Proposal(FLOW, f"seed {request.seed}", self.name)


class Parrot:
    """A third party's provider."""

    def __init__(self, model: str, base_url: str | None, *, patience: Patience, price: object) -> None:
        self.name = f"parrot:{model}"
        self.price = Price(model, "", 1.0, 2.0)
        self.base_url, self.patience = base_url, patience


class Grammar(Proposer):
    """Stands in for the offline proposer's signature."""

    def __init__(self, size: int = 5) -> None:
        self.name = "grammar"
        self.size = size

    async def propose(self, request: ProposalRequest) -> Proposal:
        return Proposal(FLOW, "grown", self.name)


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("echo_for_test")
    module.Echo = Echo  # type: ignore[attr-defined]
    module.Parrot = Parrot  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "echo_for_test", module)
    points = EntryPoints(
        [
            EntryPoint("echo", "echo_for_test:Echo", PROPOSERS.group),
            EntryPoint("gone", "no_such_module_xyz:thing", PROPOSERS.group),
            EntryPoint("parrot", "echo_for_test:Parrot", PROVIDERS.group),
        ]
    )
    monkeypatch.setattr(registry, "entry_points", points.select)


@pytest.fixture
def grammar(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("agents.grammar.proposer")
    module.GrammarProposer = Grammar  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "agents.grammar.proposer", module)


def refused(spec: str, **options: object) -> ProposerError:
    with pytest.raises(ProposerError) as caught:
        make_proposer(spec, language=LANGUAGE, **options)  # type: ignore[arg-type]
    return caught.value


@pytest.mark.parametrize("spec", [f"openai:org/model:tag@{LOCAL}", f"anthropic:m@2025@{LOCAL}"])
def test_model_names_may_hold_colons_and_at_signs(spec: str) -> None:
    made = make_proposer(spec, language=LANGUAGE)
    assert isinstance(made, LLMProposer)
    assert made.name == (spec if spec.startswith("openai") else spec.removesuffix("/v1"))


def test_unknown_name_lists_what_exists_and_the_nearest(echo: None) -> None:
    error = refused("antropic:m")
    assert error.code == "VA001"
    for name in ("anthropic", "openai", "grammar", "echo"):
        assert name in error.message
    assert "did you mean anthropic?" in error.remedy
    assert names() == [
        "anthropic",
        "echo",
        "gone",
        "grammar",
        "inbox",
        "openai",
        "openai-responses",
        "parrot",
    ]


@pytest.mark.parametrize(
    "spec", ["", "openai", "openai:", f"openai:@{LOCAL}", "grammar:x", "grammar,,openai:m", ","]
)
def test_malformed_specification(spec: str) -> None:
    assert refused(spec).code == "VA001"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("temprature", 0.5),
        ("max_tokens", "many"),
        ("max_tokens", 1.5),
        ("max_tokens", None),
        ("max_tokens", 0),
        ("max_retries", True),
        ("temperature", "hot"),
        ("timeout_s", 0),
        ("input_price", 1.0),
    ],
)
def test_unknown_or_bad_option(option: str, value: object) -> None:
    error = refused(f"openai:m@{LOCAL}", **{option: value})
    assert error.code == "VA002"
    assert option in str(error) or option.split("_")[0] in str(error)


def test_language_is_required_of_models() -> None:
    with pytest.raises(ProposerError) as caught:
        make_proposer(f"openai:m@{LOCAL}")
    assert caught.value.code == "VA002"


def test_grammar_needs_neither_language_nor_key(grammar: None) -> None:
    made = make_proposer("grammar", size=9)
    assert isinstance(made, Grammar)
    assert made.size == 9
    assert refused("grammar", sise=9).code == "VA002"


def test_grammar_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "agents.grammar.proposer", None)
    assert refused("grammar").code == "VA003"


def test_third_party_gets_argument_language_limit_and_options(echo: None) -> None:
    limit = SpendLimit(dollars=1.0)
    made = make_proposer("echo:a:b", language=LANGUAGE, limit=limit, shout=True)
    assert isinstance(made, Echo)
    assert (made.name, made.given) == ("echo:a:b", (LANGUAGE, limit, True))


def test_a_third_partys_provider_is_asked_like_ours(echo: None) -> None:
    made = make_proposer(f"parrot:m@{LOCAL}", language=lambda: LANGUAGE, timeout_s=7)
    assert isinstance(made, LLMProposer)
    provider = made._provider
    assert isinstance(provider, Parrot)
    assert (made.name, provider.base_url, provider.patience.timeout_s) == ("parrot:m", LOCAL, 7)


def test_the_language_is_written_only_for_those_who_need_it(grammar: None) -> None:
    def never() -> str:
        raise AssertionError("the grammar reads no words")

    assert not GrammarProposer().needs_language
    assert not GrammarProposer().repairs
    make_proposer("grammar", language=never)


def test_an_ensemble_can_what_a_member_can_and_repairs_go_to_one_that_mends() -> None:
    class Unable(Echo):
        repairs = False
        needs_language = False

    able = Echo("able", language="", limit=None)
    unable = [Unable(name, language="", limit=None) for name in ("a", "b")]
    assert not EnsembleProposer(unable).repairs
    assert not EnsembleProposer(unable).needs_language
    team = EnsembleProposer([*unable, able])
    assert team.repairs
    assert team.needs_language
    assert {team.choose(repair=True) for _ in range(3)} == {"echo:able"}


def test_third_party_that_fails_is_one_clear_error(echo: None) -> None:
    error = refused("gone")
    assert error.code == "VA003"
    assert "no_such_module_xyz" in error.message
    assert refused("echo:x", no_such_option=1).code == "VA003"


def test_commas_make_an_ensemble_that_shares_options(grammar: None, echo: None) -> None:
    made = make_proposer(f"grammar,openai:m@{LOCAL}", language=LANGUAGE, size=3, max_tokens=50)
    assert isinstance(made, EnsembleProposer)
    assert made.name == f"grammar,openai:m@{LOCAL}"
    assert refused(f"grammar,openai:m@{LOCAL}", nothing=1).code == "VA002"
    assert refused("grammar,grammar").code == "VA001"


def ensemble(*members: str) -> EnsembleProposer:
    return EnsembleProposer([Echo(name, language="", limit=None) for name in members])


def asked(team: Proposer, times: int) -> list[str]:
    request = ProposalRequest(kind="seed", seed=1)
    return [asyncio.run(team.propose(request)).proposer for _ in range(times)]


def test_members_take_turns_while_nothing_is_known() -> None:
    assert asked(ensemble("a", "b", "c"), 6) == ["echo:a", "echo:b", "echo:c"] * 2


def test_bandit_prefers_gain_per_dollar_and_never_stops_looking() -> None:
    team = ensemble("cheap", "dear")
    counts = {"echo:cheap": 0, "echo:dear": 0}
    for _ in range(200):
        (member,) = asked(team, 1)
        counts[member] += 1
        team.tell(member, gain=0.1, dollars=0.01 if member == "echo:cheap" else 0.5)
    assert counts["echo:cheap"] > 150
    assert counts["echo:dear"] >= 3


def test_unpriced_member_is_taken_to_cost_what_others_do() -> None:
    team = ensemble("priced", "unpriced")
    for _ in range(50):
        (member,) = asked(team, 1)
        team.tell(
            member, gain=0.1 if member == "echo:priced" else 0.3, dollars=None if "un" in member else 0.2
        )
    assert team.choose() == "echo:unpriced"


def test_replayed_tells_rebuild_the_choice() -> None:
    first, second = ensemble("a", "b"), ensemble("a", "b")
    log = []
    for step in range(30):
        (member,) = asked(first, 1)
        log.append((member, 0.1 * (step % 3), 0.02))
        first.tell(*log[-1])
    for entry in log:
        second.tell(*entry)
    assert first.choose() == second.choose()


def test_what_a_member_that_left_has_brought_is_forgotten() -> None:
    team = ensemble("a")
    team.tell("echo:z", 1.0, 0.0)
    assert team.choose() == "echo:a"


def test_importing_the_registry_loads_no_torch_and_no_sdk(root: Path) -> None:
    heavy = "{'torch', 'openai', 'anthropic', 'genai_prices'}"
    code = f"import sys, agents.registry; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
