"""What a person sees while a campaign runs: a live panel on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table

from search.campaign.archive import Verdict, order, score
from search.config import CampaignConfig
from search.log import events as ev
from search.log.state import CampaignState, Candidate
from search.log.store import Record
from search.tables import metric
from vortex_core.text import markup

_RECENT = 6


class Progress:
    """Use as a context manager; pass `watch` to the campaign.

    Args:
        console: where to write; results go elsewhere.
        config: of the campaign.
        title: e.g. the run's name.
    """

    def __init__(self, console: Console, config: CampaignConfig, title: str) -> None:
        self.console = console
        self.config = config
        self.title = title
        self._state: CampaignState | None = None
        self._recent: list[str] = []
        self._doing = "starting workers and loading the model"
        self._began = time.monotonic()
        self._finished_before: int | None = None
        self._best: Candidate | None = None
        self._live: Live | None = None

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            self._live = Live(get_renderable=self._panel, console=self.console, refresh_per_second=2)
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.__exit__(kind, error, trace)

    def say(self, words: str) -> None:
        """A line that no event says."""
        self._recent = [*self._recent, markup(words)][-_RECENT:]
        if self._live is None:
            self.console.print(f"[{self._clock()}] {markup(words)}", highlight=False, soft_wrap=True)

    def watch(self, record: Record, state: CampaignState) -> None:
        """Called with every new event."""
        self._state = state
        if self._finished_before is None:
            self._finished_before = state.finished_found
            for candidate in state.found:
                self._consider(candidate)
        line = self._line(record.event, state)
        if line is None:
            return
        self._recent = [*self._recent, line][-_RECENT:]
        if self._live is None:
            self.console.print(f"[{self._clock()}] {line}", highlight=False, soft_wrap=True)

    def _line(self, event: ev.Event, state: CampaignState) -> str | None:
        """One line for an event that people care about."""
        match event:
            case ev.SessionStarted() if state.sessions > 1:
                done, programs = state.finished_found, state.distinct_programs
                return f"resuming: {done} candidates finished ({programs} programs), nothing is repeated"
            case ev.ReferenceMeasured(purpose=purpose, seconds=seconds):
                self._doing = "measuring references"
                return f"dense reference for {purpose} items ready in {seconds:.0f} s"
            case ev.CandidateFinished(key=key, purpose=purpose):
                candidate = state.candidates[key]
                self._consider(candidate)
                if not candidate.reference:
                    self._doing = "searching" if purpose == "search" else "finals"
                return self._candidate_line(candidate, purpose, state)
            case ev.Rejected(proposal=number, error=error):
                return f"[yellow]refused[/] proposal {number}: {_error(error)}"
            case ev.ProposalFailed(proposal=number, error=error):
                return f"[yellow]no answer[/] to proposal {number}: {_error(error)}"
            case ev.InfrastructureFailed(stage=stage, attempt=attempt, error=error):
                return f"[red]worker failed[/] in {stage} (attempt {attempt + 1}): {_error(error)}"
            case ev.EngineJoined(worker=worker):
                return f"engine joined: {markup(worker)} ({len(state.engines)} at work)"
            case ev.EngineLeft(worker=worker, error=error, waiting=waiting):
                more = ", another is asked for" if waiting else ""
                return f"[yellow]engine left[/]: {markup(worker)}: {_error(error)} ({len(state.engines)} at work{more})"
            case ev.FinalistsChosen(keys=keys):
                self._doing = "measuring the best again on fresh items"
                return f"finals: {len(keys)} candidates on fresh items"
            case ev.CandidateAbandoned(key=key, stage=stage, error=error):
                return f"{markup(_name(state.candidates[key]))} [red]given up[/] at {stage}: {_error(error)}"
            case ev.WinnerChosen(key=key):
                self._doing = "sealed set"
                return f"winner on fresh items: {markup(_name(state.candidates[key]))}"
            case ev.CampaignFinished(reason=reason):
                return f"finished: {reason}"
        return None

    def _consider(self, candidate: Candidate) -> None:
        """Whether a found candidate now leads: kept as results come, since ranking all would cost more with each."""
        ours = score(candidate, self.config.objective) if candidate.status() == "passed" else None
        if candidate.reference or ours is None or ours.verdict is Verdict.FAILED:
            return
        theirs = None if self._best is None else score(self._best, self.config.objective)
        if theirs is None or self._best is None or order(candidate, ours) < order(self._best, theirs):
            self._best = candidate

    def _candidate_line(self, candidate: Candidate, purpose: ev.Purpose, state: CampaignState) -> str:
        where = "" if purpose == "search" else f" ({purpose})"
        name = markup(_name(candidate))
        stopped = next((r for r in candidate.stages(purpose) if not r.passed), None)
        if stopped is not None:
            error = stopped.failure.error if stopped.failure else {}
            return f"{name}{where} [yellow]stopped[/] at {stopped.stage}: {_error(error)}"
        metrics = {**candidate.metrics(), **candidate.metrics(purpose)}
        objective = self.config.objective
        shown = [
            f"{label} {metric(found)}"
            for label, found in (
                ("accuracy", metrics.get("accuracy")),
                (objective.accuracy, metrics.get(objective.accuracy)),
                (objective.speed, metrics.get(objective.speed)),
            )
            if found is not None
        ]
        count = f"{state.distinct_programs}/{self.config.limits.candidates} " if purpose == "search" else ""
        return f"{'' if candidate.reference else count}{name}{where} {', '.join(shown)}"

    def _clock(self) -> str:
        seconds = int(time.monotonic() - self._began)
        return f"{seconds // 60:3d}:{seconds % 60:02d}"

    def rate(self) -> float:
        """Found candidates finished per minute of this session."""
        if self._state is None or self._finished_before is None:
            return 0.0
        minutes = max(time.monotonic() - self._began, 1e-9) / 60
        return (self._state.finished_found - self._finished_before) / minutes

    def _panel(self) -> RenderableType:
        state, limit = self._state, self.config.limits.candidates
        done = state.distinct_programs if state else 0
        head = Table.grid(padding=(0, 2))
        head.add_row(
            ProgressBar(total=max(limit, 1), completed=done, width=30),
            f"{done}/{limit} programs",
            f"{self.rate():.1f} candidates/min",
            self._clock().strip(),
            f"[bold]{self._doing}[/]",
        )
        parts: list[RenderableType] = [head]
        if state is not None:
            best = None if self._best is None else score(self._best, self.config.objective)
            if self._best is not None and best is not None:
                speed = f"{self.config.objective.speed} {metric(best.speed)}"
                accuracy = f"{self.config.objective.accuracy} {metric(best.accuracy)}"
                parts.append(f"best: {markup(_name(self._best))}  {speed}  {accuracy}")
            parts.append(_stage_times(state))
            if state.dollars or any(s.unpriced for s in state.spending.values()):
                unpriced = sum(s.unpriced for s in state.spending.values())
                extra = f" and {unpriced} unpriced calls" if unpriced else ""
                parts.append(f"proposers: ${state.dollars:.3f}{extra}")
        parts += [f"[dim]{line}[/]" for line in self._recent]
        return Panel(Group(*parts), title=f"vortex-search: {markup(self.title)}", title_align="left")


def _stage_times(state: CampaignState) -> str:
    longest = sorted(state.stage_time.items(), key=lambda item: -item[1].seconds)[:6]
    return "time: " + "  ".join(f"{name} {spent.seconds:.0f} s" for name, spent in longest)


def _name(candidate: Candidate) -> str:
    return f"{candidate.label} {candidate.name}"


def _error(error: dict[str, object]) -> str:
    return markup(f"{error.get('code', '?')} {error.get('message', '')}"[:160])
