"""A small campaign from Python, and its leaderboard. The same program run again resumes it.

    python examples/run_campaign.py

Needs the weights of smollm2-135m (`vortex-search models fetch smollm2-135m`, 93 MB). The run is written to runs/example
(`$VORTEX_RUNS` moves it); `vortex-search show example`, `report example` and `export example` read it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from search.campaign.archive import Archive
from search.campaign.options import Options, resolve
from search.campaign.session import run_campaign
from search.config import CampaignConfig
from search.log.state import CampaignState
from search.log.store import Record


class Lines:
    """Prints each event's kind as it is recorded; `vortex-search` draws a live display in the same place."""

    def watch(self, record: Record, state: CampaignState) -> None:
        print(f"{record.seq:4} {type(record.event).__name__}")

    def say(self, words: str) -> None:
        print(f"     {words}")


@contextmanager
def watching(config: CampaignConfig, run: str) -> Iterator[Lines]:
    print(f"{run}: {config.description}")
    yield Lines()


def main() -> None:
    options = Options(campaign="quick", run="example", seed=3, max_candidates=2)
    _, state = run_campaign(options, watching)
    for entry in Archive(state, resolve(options).config.objective).entries:
        score = entry.score
        print(
            f"{entry.rank or '-'}. {entry.candidate.name}: gates {score.verdict.name.lower()}, "
            f"accuracy {score.accuracy.value:+.3f} of dense, {score.speed.value:.2f}x dense ({score.speed.how})"
        )


if __name__ == "__main__":
    main()
