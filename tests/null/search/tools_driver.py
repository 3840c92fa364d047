"""`vortex-search` for tests of the tools: a campaign's stages are simulated, everything else is the real command."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from search import simulation
from search.campaign.options import Options
from search.campaign.session import run_campaign
from search.cli.app import main
from search.cli.runs import _conclude
from search.config import CampaignConfig
from vortex_core.ir.flow import Flow
from vortex_core.sandbox.jail import run as trace_here

simulation.point_of = lambda flow: (
    int(flow.key[:3], 16) / 4096
)  # every program has a place in the simulated plane


class Executor(simulation.SimulatedExecutor):
    async def trace(self, source: str) -> Flow:
        return trace_here(source, "flow.py").flow


@contextmanager
def silent(config: CampaignConfig, name: str) -> Iterator[Any]:
    class Watching:
        def watch(self, *_: object) -> None: ...
        def say(self, words: str) -> None: ...

    yield Watching()


def given(name: str) -> str | None:
    return next((a.partition("=")[2] for a in sys.argv if a.startswith(f"{name}=")), None)


if __name__ == "__main__":
    if given("--proposer") is None:
        main(sys.argv[1:])
    else:
        options = Options(
            campaign=given("--campaign"), model=given("--model"), proposer=given("--proposer"), run=given("--run"),
            max_candidates=int(given("--max-candidates") or 8), seconds=100.0,
        )  # fmt: skip
        name, _ = run_campaign(options, silent, Executor())
        _conclude(name, as_json=True)
