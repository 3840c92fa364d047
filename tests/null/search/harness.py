"""A campaign against a simulated cluster, kept in memory over several sessions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from search.campaign.campaign import Campaign
from search.config import CampaignConfig
from search.log import events as ev
from search.log.files import ContentStore
from search.log.run import Run
from search.log.state import CampaignState
from search.log.store import MemoryEventStore, Record
from search.simulation import SimulatedExecutor, SimulatedProposer, simulated_library

STARTED = ev.CampaignStarted("sim", {}, {}, {}, {})
SESSION = ev.SessionStarted(1, {})


def config(**changes: Any) -> CampaignConfig:
    base: dict[str, Any] = {
        "references": ["dense", "quest", "block_topk"],
        "objective": {"gates": [{"metric": "accuracy_delta", "at_least": -0.25}], "margin": 0.1},
        "arms": [
            {"name": "evolve", "strategy": {"kind": "evolve", "size": 32}, "share": 2},
            {"name": "random", "strategy": {"kind": "random"}, "control": True},
        ],
        "limits": {"candidates": 9},
    }
    return CampaignConfig.model_validate(base | changes)


class Harness:
    """A run kept in memory over several sessions."""

    def __init__(self, tmp_path: Path, settings: CampaignConfig | None = None) -> None:
        self.config = settings or config()
        self.folder = tmp_path
        tmp_path.mkdir(parents=True, exist_ok=True)
        self.store = MemoryEventStore(clock=iter(range(10**9)).__next__)
        self.files = ContentStore(self.store.texts, tmp_path / "files")
        self.executor = SimulatedExecutor()
        self.proposer: Any = SimulatedProposer()
        self.model: dict[str, Any] = {"name": "sim"}

    def campaign(self, watch: Callable[[Record, CampaignState], None] | None = None) -> Campaign:
        run = Run("sim", self.folder, self.store, self.files)
        proposers = {arm.name: self.proposer for arm in self.config.arms}
        return Campaign(
            run,
            self.config,
            self.executor,
            proposers,
            seed=1,
            model=self.model,
            library=simulated_library,
            watch=watch or (lambda record, state: None),
        )

    def go(self, watch: Callable[[Record, CampaignState], None] | None = None) -> CampaignState:
        return asyncio.run(self.campaign(watch).run_to_end(STARTED, SESSION))


def kinds(store: MemoryEventStore) -> list[str]:
    return [r.event.kind for r in store.read()]
