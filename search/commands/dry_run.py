"""What a campaign's language models are expected to cost, before anything is sent."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from agents.base import Parent, ProposalRequest
from agents.ensemble import EnsembleProposer
from agents.llm import LLMProposer
from search.campaign.feedback import objective_in_words
from search.campaign.session import Options, load_library, make_proposers, resolve
from search.log.state import CampaignState


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
    flow, source = load_library("quest", {})
    request = ProposalRequest(
        kind="mutate", seed=0, parents=(Parent(flow, source),), objective=objective_in_words(config.objective)
    )
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
