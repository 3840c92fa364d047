"""A campaign of two paid models against a simulated cluster, on disk: what a test starts, kills and starts again."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

from search.campaign.campaign import Campaign
from search.campaign.session import make_proposers
from search.config import CampaignConfig
from search.log import events as ev
from search.log.run import open_run, read_state
from search.simulation import SimulatedExecutor, simulated_flow, simulated_library
from vortex_core.errors import VortexError
from vortex_core.ir.flow import Flow


class Points(SimulatedExecutor):
    """Takes programs that name a point of the simulated plane in a line of their own."""

    async def trace(self, source: str) -> Flow:
        await asyncio.sleep(0.01)
        found = re.search(r"^ +x = (\d\.\d+)$", source, re.M)
        if found is None:
            raise VortexError("VF012", "no point", "name one")
        return simulated_flow(float(found[1]))


def configuration(urls: list[str], folder: Path) -> CampaignConfig:
    spec = ",".join([f"openai:good@{urls[0]}", f"anthropic:dear@{urls[1]}"])
    path = folder / "two.yaml"
    options = "{input_price: 1.0, output_price: 10.0, max_tokens: 4000, max_retries: 2}"
    path.write_text(f"spec: '{spec}'\noptions: {options}\n")
    return CampaignConfig.model_validate(
        {
            "references": ["dense", "quest", "block_topk"],
            "proposer": str(path),
            "objective": {"gates": [{"metric": "accuracy_delta", "at_least": -0.25}], "margin": 0.1},
            "arms": [{"name": "evolve", "strategy": {"kind": "evolve"}}],
            "limits": {"candidates": 12, "tokens": 5_000_000},
            "cluster": {"lookahead": 3},
            "proposer_patience": 50,
            "finals": {"elites": 1, "most": 1},
        }
    )


def main() -> None:
    root, *urls = sys.argv[1:]
    config = configuration(urls, Path(root))
    with open_run("paid", readonly=False, root=Path(root)) as run:
        proposers = make_proposers({"evolve": config.proposer}, config, read_state(run))
        campaign = Campaign(
            run, config, Points(), proposers, seed=1, model={"name": "sim"}, library=simulated_library
        )
        asyncio.run(campaign.run_to_end(ev.CampaignStarted("paid", {}, {}, {}, {}), ev.SessionStarted(1, {})))


if __name__ == "__main__":
    main()
