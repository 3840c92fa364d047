"""One simulated campaign on a cluster: `python -m tests.chaos.driver ROOT RUN ADDRESS name=value...`.

Proposals are drawn from the proposal's number alone, so that the set of programs does not depend on who finished first.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import ray

from agents.base import Proposal, ProposalRequest, Proposer, Usage
from search.campaign.campaign import Campaign
from search.config import CampaignConfig
from search.executors.ray_cluster import RayExecutor
from search.executors.workers import CpuWorker, EngineSetup
from search.log import events as ev
from search.log.run import open_run
from search.log.state import CampaignState
from search.simulation import simulated_flow, simulated_library, simulated_stage
from tests.chaos import clusters


class NumberedProposer(Proposer):
    """Answers the seed of an ask with a point that depends on nothing else."""

    name = "numbered"
    repairs = False
    needs_language = False

    async def propose(self, request: ProposalRequest) -> Proposal:
        """See `Proposer`."""
        x = (request.seed % 997) / 997
        return Proposal(json.dumps({"x": round(x, 2)}), f"x={x:.2f}", self.name, Usage(calls=1, dollars=0.01))


class TinyCpuWorker(CpuWorker):
    """Traces and checks without the jail: what is simulated needs neither."""

    def trace(self, source: str, campaign: str = "") -> dict[str, Any]:
        """See `CpuWorker`."""
        flow = simulated_flow(json.loads(source)["x"])
        return {"value": flow.to_json() | {"key": flow.key}}

    def run(self, stage: str, flow: dict[str, Any], setup: EngineSetup, seed: int) -> dict[str, Any]:
        """See `CpuWorker`."""
        return {"value": simulated_stage(stage, flow, seed).to_json()}


def configuration(candidates: int, **cluster: Any) -> CampaignConfig:
    """Of a campaign whose set of programs is fixed: random asks only."""
    return CampaignConfig.model_validate(
        {
            "references": ["dense", "quest", "block_topk"],
            "objective": {"gates": [{"metric": "accuracy_delta", "at_least": -0.25}], "margin": 0.1},
            "arms": [{"name": "random", "strategy": {"kind": "random"}}],
            "limits": {"candidates": 10_000, "evaluations": candidates},
            "cluster": {"start_deadline": 120, "deadline": 60, "drain": 10, **cluster},
        }
    )


def go(
    root: Path, run: str, address: str, candidates: int = 30, model: str = "", **cluster: Any
) -> CampaignState:
    """Run or resume it to its end."""
    for module in (clusters, sys.modules[__name__]):
        ray.cloudpickle.register_pickle_by_value(module)
    config = configuration(candidates, address=None if address == "local" else address, **cluster)
    executor = RayExecutor(
        config.cluster,
        EngineSetup(model or str(root), {}),
        lambda device: clusters.STAGES,
        clusters.SleepingEngine,
        campaign=run,
        cpu=TinyCpuWorker,
        logs=str(root / run / "logs"),
    )
    settings = {
        "campaign": config.model_dump(mode="json", exclude={"limits", "cluster", "serving", "description"})
    }
    limits = config.model_dump(mode="json", include={"limits", "cluster", "serving"})
    with open_run(run, readonly=False, root=root) as opened:
        campaign = Campaign(
            opened, config, executor, {"random": NumberedProposer()}, seed=1, model={}, library=simulated_library,
            say=lambda words: print(words, flush=True),
        )  # fmt: skip
        started = ev.CampaignStarted(run, settings, {}, {}, {})
        return asyncio.run(campaign.run_to_end(started, ev.SessionStarted(1, limits)))


def results(root: Path, run: str) -> dict[str, Any]:
    """What a run found, whoever measured it and in whichever order."""
    from search.log.run import read_state

    with open_run(run, readonly=True, root=root) as opened:
        state = read_state(opened)
        events = [record.event for record in opened.store.read()]
    paid = [e.proposal for e in events if isinstance(e, ev.Proposed)]
    stages = [(e.key, e.purpose, e.stage) for e in events if isinstance(e, ev.StageFinished)]
    assert len(set(paid)) == len(paid), "a proposal was paid for twice"
    assert len(set(stages)) == len(stages), "a result was recorded twice"
    return {
        candidate.key: {name: metric.value for name, metric in sorted(candidate.metrics("search").items())}
        for candidate in state.candidates.values()
        if candidate.status() != "waiting" and candidate.key not in state.twins
    }


if __name__ == "__main__":
    given = dict(option.split("=", 1) for option in sys.argv[4:])
    numbers = {name: json.loads(value) for name, value in given.items()}
    state = go(Path(sys.argv[1]), sys.argv[2], sys.argv[3], **numbers)
    assert state.finished is not None
    print(f"finished: {state.finished.reason}", flush=True)
