"""Following a run's log: the state as of now, folded event by event."""

from __future__ import annotations

from search.errors import unknown_run
from search.log.run import Run, read_state, run_names
from search.log.state import CampaignState


class Follower:
    """A run's state that keeps up with its log.

    Raises:
        VortexError: `VS001` for a run whose first event is not there yet, `VS005` for a log that cannot be read.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.state = read_state(run)
        if self.state.started is None:
            raise unknown_run(run.name, [n for n in run_names() if n != run.name])

    def news(self) -> int:
        """Fold in what is new; returns how many events that was."""
        before = self.state.seq
        for record in self.run.store.read(after=before):
            self.state.apply(record)
        return self.state.seq - before


def stage_of(state: CampaignState) -> str:
    """Where a run stands, in a few words."""
    if state.finished is not None:
        return f"finished ({state.finished.reason})"
    if state.finalists is not None:
        return "finals: elites on fresh items"
    if not state.proposals:
        return "references"
    return "searching"
