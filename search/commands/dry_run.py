"""What a campaign's language models are expected to cost, before anything is sent."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from agents.base import Lesson, Parent, ProposalRequest, Standing
from agents.ensemble import EnsembleProposer
from agents.llm import LLMProposer
from search.campaign.conditions import setting
from search.campaign.feedback import objective_in_words, screen_in_words
from search.campaign.options import Options, resolve
from search.campaign.session import load_library, make_proposers, plan_of
from search.config import CampaignConfig
from search.log import events as ev
from search.log.state import CampaignState
from search.log.store import Record

_CANDIDATES = 20
_LESSONS = 12


@dataclass(frozen=True)
class Cost:
    """Expected calls of one model.

    Attributes:
        model: as in reports.
        calls: expected, each arm's share of the candidates; repairs, failures and duplicates come on top.
        tokens: of an ordinary call, in and out.
        dollars: of an ordinary call, None if unpriced.
        most_dollars: of the dearest call that may be made.
        total: of `calls` ordinary calls.
    """

    model: str
    calls: int
    tokens: int
    dollars: float | None
    most_dollars: float | None
    total: float | None


def estimate_costs(options: Options) -> dict[str, Any]:
    """Costs by model, their sum, and the caps of the campaign.

    Raises:
        VortexError: for a campaign or proposer that cannot be made, a missing key among them.
    """
    resolved = resolve(options)
    config = resolved.config
    specs = {arm.name: arm.proposer or config.proposer for arm in config.arms}
    proposers = make_proposers(specs, config, CampaignState())
    shares = sum(arm.share for arm in config.arms)
    calls: dict[str, float] = {}
    models: dict[str, LLMProposer] = {}
    for arm in config.arms:
        proposer = proposers[arm.name]
        members = proposer.members if isinstance(proposer, EnsembleProposer) else (proposer,)
        asked = [member for member in members if isinstance(member, LLMProposer)]
        for member in asked:
            models[member.name] = member
            share = config.limits.candidates * arm.share / shares / len(members)
            calls[member.name] = calls.get(member.name, 0.0) + share
    request = _grown(config)
    costs = []
    for name, member in models.items():
        forecast, number = member.forecast(request), math.ceil(calls[name])
        one = forecast.typical.dollars
        costs.append(
            Cost(
                name,
                number,
                forecast.typical.tokens,
                one,
                forecast.most.dollars,
                None if one is None else one * number,
            )
        )
    known = [cost.total for cost in costs if cost.total is not None]
    return {
        "campaign": resolved.campaign,
        "run": resolved.run_name(options),
        "models": [asdict(cost) for cost in costs],
        "dollars": sum(known) if len(known) == len(costs) else None,
        "caps": config.limits.model_dump(include={"candidates", "dollars", "tokens", "calls", "seconds"}),
    }


def _grown(config: CampaignConfig) -> ProposalRequest:
    """An ask as long as those in the middle of a campaign, when there is something to tell: about
    `_CANDIDATES` candidates with their intervals, and as many lessons as are told."""
    flow, source = load_library("quest", {})
    figure = {"value": 0.1234, "low": 0.1234, "high": 0.1234, "n": 16}
    row = Standing(
        "c000 a_program_of_this_name",
        "best",
        "screened only, gates proven",
        "x" * 120,
        config.knobs,
        dict.fromkeys((config.objective.accuracy, config.objective.speed, "state_share"), figure),
    )
    rows = tuple(
        replace(row, name=f"c{n:03} a_program_of_this_name", idea=f"{n}" * 40) for n in range(_CANDIDATES)
    )
    lesson = Lesson(
        "with a trait of a program: accuracy_delta +0.123, speed +0.123 on average", 4, 2, 0.5, ("c000",)
    )
    started = ev.CampaignStarted("", {}, plan_of(config).model_dump(mode="json"), {}, {})
    state = CampaignState()
    state.apply(Record(1, 0.0, started))
    return ProposalRequest(
        kind="mutate",
        seed=0,
        parents=(Parent(flow, source),),
        objective=objective_in_words(config.objective) + screen_in_words(config.screen),
        setting=setting(state, config),
        knobs=config.knobs,
        standings=rows,
        lessons=(lesson,) * _LESSONS,
    )


def in_words(found: dict[str, Any]) -> str:
    """The estimate for people."""
    if not found["models"]:
        return "No language model is asked: proposers cost nothing."
    lines = []
    for cost in found["models"]:
        one = "at an unknown price" if cost["dollars"] is None else f"at about ${cost['dollars']:.4f}"
        lines.append(f"{cost['model']}: about {cost['calls']} calls of {cost['tokens']} tokens {one} each")
    total = "unknown" if found["dollars"] is None else f"about ${found['dollars']:.2f}"
    caps = ", ".join(f"{name} {value:g}" for name, value in found["caps"].items() if value is not None)
    return "\n".join([*lines, f"together: {total}, without repairs and failures; caps: {caps}"])
