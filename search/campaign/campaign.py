"""The driver: one asyncio task owns all state; every decision is an event before it is acted on.

A *journey* takes one ask through propose, trace, deduplication and the stages. A few journeys are under way
at once, so proposing and CPU work overlap with the engine. Stopping at any event loses nothing: a new driver
folds the log, goes on with the open journeys and asks what the old one would have asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any

from agents.base import Lesson, Proposer
from search.campaign import fitting
from search.campaign.archive import Archive
from search.campaign.arms import Arms
from search.campaign.asking import Asking
from search.campaign.budget import reached, search_ends, search_seconds
from search.campaign.drain import Drain
from search.campaign.finals import Finals
from search.campaign.forecast import finals_seconds
from search.campaign.ladder import Ladder
from search.campaign.lessons import Lessons
from search.campaign.live import LiveView
from search.campaign.pipeline import LibraryLoader, Pipeline
from search.campaign.references import References
from search.campaign.replay import Recording
from search.campaign.work import Work
from search.config import CampaignConfig
from search.errors import other_device, other_weights
from search.executors.base import Executor, Joined, Left, Notice
from search.log import events as ev
from search.log.run import Run
from search.log.state import SEARCHING, USER, CampaignState, Candidate, Proposal
from search.log.store import Record
from search.machine import device_words
from vortex_core.errors import VortexError

_REFERENCES = 0.6
"""Share of a screened search's time after which no library flow begins to answer."""


class Campaign:
    """Runs or resumes a campaign.

    Args:
        run: opened for writing.
        config: the campaign.
        executor: runs stages.
        proposers: by arm name.
        seed: of the campaign.
        model: description of the model for prompts.
        library: loads the campaign's references; `(flow, knobs) -> Flow with source`.
        watch: called with every new record, for progress displays.
        say: called with what no event says, for people.
        recording: replays these asks instead of asking the strategies.
        carried: lessons of other runs.
    """

    def __init__(
        self,
        run: Run,
        config: CampaignConfig,
        executor: Executor,
        proposers: Mapping[str, Proposer],
        *,
        seed: int,
        model: dict[str, Any],
        library: LibraryLoader,
        watch: Callable[[Record, CampaignState], None] = lambda record, state: None,
        say: Callable[[str], None] = lambda words: None,
        recording: Recording | None = None,
        carried: tuple[Lesson, ...] = (),
    ) -> None:
        self.run = run
        self.config = config
        self.executor = executor
        self.library = library
        self.watch = watch
        self.state = CampaignState()
        self.drain = Drain(config.cluster.drain, say)
        self.pipeline = Pipeline(
            run, config, executor, self.state, self.record, seed, self.drain, fitting.geometry_of(model)
        )
        self.ladder = None if config.screen is None else Ladder(config.screen, config.objective)
        self.arms = Arms(
            config, proposers, seed, self.state, None if self.ladder is None else self.ladder.learned
        )
        lessons = Lessons(run.files, config, carried)
        self.asking = Asking(
            config, self.state, self.record, proposers, self.arms, self.pipeline, model, lessons, recording
        )
        self._handed: list[str] = []  # a user's, screened: they answer whatever their rank
        self.references = References(config, self.state, executor, self.pipeline, self.ladder)
        self._live: LiveView | None = None
        for record in run.store.read():
            self._apply(record)
        self._changed = asyncio.Event()
        self._session_began = time.monotonic()
        self._active_before = self.state.active_seconds
        self._last_event = time.monotonic()

    # -- state -------------------------------------------------------------------------------------------

    def record(self, *new: ev.Event) -> None:
        """Write events, then fold them. Nothing else changes state."""
        for record in self.run.store.append(*new):
            self._apply(record)
            self._last_event = time.monotonic()
            if self._live is not None:
                self._live.watch(record, self.state)
            self.watch(record, self.state)

    def _apply(self, record: Record) -> None:
        self.state.apply(record)
        match record.event:
            case ev.CandidateFinished(key=key, purpose="search" | "screen" | "full_screen" as purpose):
                candidate = self.state.candidates[key]
                proposal = None if candidate.proposal is None else self.state.proposals[candidate.proposal]
                if purpose != "full_screen":
                    self.asking.broken(proposal)
                if self.ladder is not None and not candidate.reference:
                    self.ladder.finished(candidate, purpose)
                    if purpose == "screen":
                        self.asking.screened(candidate)
                    if (
                        candidate.arm == USER
                        and purpose == "screen"
                        and candidate.status(purpose) == "passed"
                    ):
                        self._handed.append(key)
                # Dense is what all are compared with: there is nothing in it to go on from. A twin of a winner
                # is what the search found, not where it may begin.
                anew = self.ladder is not None and purpose == "search" and self.ladder.heard(candidate)
                if purpose != "full_screen" and not candidate.is_dense and key not in self.state.twins:
                    self.arms.tell("scored", proposal, candidate)
                if anew:
                    self.arms.tell_anew()
            case ev.Promoted(key=key, purpose=purpose) if self.ladder is not None:
                self.ladder.went(self.state.candidates[key], purpose)
                if purpose == "search" and key in self._handed:
                    self._handed.remove(key)
            case ev.Rejected(proposal=number) | ev.ProposalFailed(proposal=number):
                self.asking.broken(self.state.proposals[number])
                self.arms.tell("rejected", self.state.proposals[number], None)
            case ev.Asked(repairs=repaired) if repaired is not None:
                self.asking.mending(repaired)
            case ev.Asked(proposal=number):
                self.arms.tell("asked", self.state.proposals[number], None)
            case ev.Duplicate(proposal=number, key=key):
                self.arms.tell("duplicate", self.state.proposals[number], self.state.candidates[key])

    @property
    def active_seconds(self) -> float:
        """Working time of all sessions until now."""
        return self._active_before + time.monotonic() - self._session_began

    @property
    def gpu_seconds(self) -> float:
        """Time that GPUs were held, until now."""
        return self.state.gpu_seconds + self.state.held_gpus * (time.monotonic() - self._last_event)

    # -- phases ------------------------------------------------------------------------------------------

    async def run_to_end(self, started: ev.CampaignStarted, session: ev.SessionStarted) -> CampaignState:
        """References, search, finals. `started` is written only if the run is new.

        Raises:
            VortexError: what stopped the campaign; it is also in the log, and the same command goes on.
        """
        live = None
        if self.run.folder.is_dir():
            live = LiveView(self.run.folder, self.config, self._facts, self._search_seconds)
            live.begin(self.state)
            self._live = live
            keeping = asyncio.create_task(live.keep(self.state, self._measure_self))
        self.record(*([started] if self.state.untouched else []), session)
        try:
            devices = await self.executor.start(self._noticed)
            self._take_up(devices)
            self._stop_gently()
            references = self.references.admit(self.library)
            if self.config.screen is None:
                await self._answer_references(references)
            else:
                await self.references.screened(references, self._too_late_to_search)
            reason = await self._search(references)
            finals = Finals(
                self.pipeline, self.config, self.state, self.record, self.library, self._time_is_up
            )
            await finals.run(reason)
        except asyncio.CancelledError:
            self.record(ev.CampaignPaused("interrupted"))
            raise
        except VortexError as error:
            with contextlib.suppress(VortexError):  # the error may be that nothing can be written any more
                self.record(ev.CampaignPaused("error", error.to_json()))
            raise
        finally:
            if live is not None:
                keeping.cancel()
                live.close(self.state)
                self._live = None
            await self.executor.close()
        return self.state

    def _facts(self) -> dict[str, Any]:
        """What no event says: what runs, for whom is waited, who else is there."""
        return {
            "running": [[what, stage, since] for (what, stage), since in self.pipeline.running.items()],
            "turns": self.pipeline.turns.waiting,
            "under_way": self.drain.running,
            "stopping": self.drain.stopping,
            "handed_in": len(self.asking.queue.waiting()),
            **getattr(self.executor, "view", {}),
        }

    def _measure_self(self) -> None:
        """Say where the campaign stands to whoever collects metrics."""
        view: dict[str, Any] = getattr(self.executor, "view", {})
        if not view:
            return
        from search.executors.metrics import campaign_stands

        state = self.state
        campaign_stands(
            self.run.name,
            {
                "programs": state.distinct_programs,
                "evaluations": state.finished_found,
                "proposals": len(state.proposals),
                "engines": view.get("engines", 0),
                "coming": view.get("coming", 0),
                "queue": sum(view.get("queue", {}).values()) + self.pipeline.turns.waiting,
                "running": self.drain.running,
                "dollars": state.dollars,
                "gpu_seconds": self.gpu_seconds,
                "infrastructure_failures": len(state.infrastructure),
                "doubled": sum(spent.doubled for spent in state.stage_time.values()),
            },
        )

    def _take_up(self, devices: list[dict[str, Any]]) -> None:
        """Record what this session measures on.

        Raises:
            VortexError: `VS043` where earlier results are of another kind of device.
        """
        before, now = ({(d["kind"], d["name"]) for d in found} for found in (self.state.devices, devices))
        if before and not now <= before:
            raise other_device(self.run.name, device_words(self.state.devices), device_words(devices))
        known, found = self._weights(), {str(d["weights"]) for d in devices if d.get("weights")}
        if known and not found <= known:
            raise other_weights(self.run.name, ", ".join(sorted(known)), ", ".join(sorted(found)))
        self.record(ev.EnginesStarted(tuple(devices)))

    def _weights(self) -> set[str]:
        """Digests of the weights that engines of this run have loaded."""
        engines = (engine for part in self.state.parts for engine in part.engines)
        return {str(engine["weights"]) for engine in engines if engine.get("weights")}

    def _noticed(self, notice: Notice) -> None:
        """Engines come and go; the log says which, and the campaign goes on with those that are there."""
        match notice:
            case Joined(worker=worker, device=device):
                self.record(ev.EngineJoined(device, worker))
            case Left(worker=worker, error=error, waiting=waiting, device=device):
                self.record(ev.EngineLeft(worker, waiting, error.to_json(), device))
            case _:
                self.record(ev.InfrastructureFailed("", "search", "engine", 0, notice.to_json()))
        self.pipeline.turns.changed()
        self._changed.set()

    async def _answer_references(self, references: list[Candidate]) -> None:
        """Prefill the search's prompts, then have the library's flows answer."""
        unfinished = any(c.status() == "waiting" for c in self.state.candidates.values())
        if unfinished or self._limit(0) is None:
            await self.pipeline.dense_reference("search")
        await self.references.answer(references, self._too_late_to_search, self._too_late_for_references)

    def _too_late_to_search(self) -> bool:
        """Whether the time for the search is used up: references would be compared with nothing."""
        config = self.config
        seconds = search_ends(
            config.limits, self.state, config.screen, config.finals.anyway, self._finals_seconds()
        )
        return seconds is not None and self.active_seconds >= seconds

    def _finals_seconds(self) -> float:
        """What the finals will take, as far as the search has shown it."""
        if self.pipeline.prefill_seconds is None or self.config.limits.seconds is None:
            return 0.0
        stages, engines = self.executor.stages("fresh"), self.executor.engines
        return finals_seconds(
            self.config.finals, self.state, self.pipeline.prefill_seconds, stages, engines=engines
        )

    def _search_seconds(self) -> float | None:
        return search_seconds(self.config.limits, self._finals_seconds())

    def _too_late_for_references(self) -> bool:
        """Whether the time left for the search is the found programs': a slow machine would otherwise spend it all on
        the library alone. What is compared at equal cost in the end is answered then."""
        seconds = self._search_seconds()
        share = 1.0 if self.config.screen is None else _REFERENCES
        return seconds is not None and self.active_seconds >= share * seconds

    def _time_is_up(self) -> bool:
        """Whether the time budget, that of the finals included, is used up."""
        seconds = self.config.limits.seconds
        return seconds is not None and self.active_seconds >= seconds

    async def _search(self, references: list[Candidate]) -> str:
        """Run journeys until a limit is reached; returns which.

        Args:
            references: library flows that answer meanwhile.
        """
        work = Work()
        if self.config.screen is not None:
            work.add("references", self._answer_references(references))
        for candidate in self.state.found:
            if kind := self._unfinished(candidate):
                work.add(kind, self._measure(candidate))
        for proposal in self.state.proposals.values():
            if proposal.outcome == "open":
                work.add("journey", self._journey(proposal))
        try:
            while True:
                reason = self._fill(work)
                if not work.tasks:
                    assert reason is not None
                    return reason
                await work.some_done(self._changed)  # an engine more: there is room for another ask
        finally:
            await work.cancel()

    def _unfinished(self, candidate: Candidate) -> str:
        """As what work an earlier session left it between two measurements; empty if it did not."""
        if self.config.screen is None:
            return "journey" if candidate.status() == "waiting" else ""
        if candidate.status("screen") == "waiting":
            return "journey"
        waiting = [p for p in candidate.promoted if candidate.status(p) == "waiting"]
        return "search" if "search" in waiting else "full_screen" if waiting else ""

    async def _measure(self, candidate: Candidate) -> None:
        """What is to be measured of a candidate before anything else decides how far it goes."""
        if self.config.screen is None:
            await self.pipeline.evaluate(candidate, "search")
            return
        for purpose in SEARCHING:
            asked = purpose == "screen" or purpose in candidate.promoted
            if asked and candidate.status(purpose) == "waiting":
                await self.pipeline.evaluate(candidate, purpose, late=self._too_late_to_search)

    def _fill(self, work: Work) -> str | None:
        """Start what there is room for; returns why no further proposal may start, if none may."""
        engines, lookahead = self.executor.engines, self.config.cluster.lookahead
        if self.ladder is None:
            room = engines * lookahead + 1
            reason = self._limit(len(work.tasks))
        else:
            room = self.executor.screeners * lookahead + 1
            if not self._too_late_to_search() and not self._references_first(work):
                for key in self._handed[: engines + 1 - work.count("search")]:
                    self.record(*(ev.Promoted(key, purpose) for purpose in ("full_screen", "search")))
                    work.add("search", self._measure(self.state.candidates[key]))
                self._promote_to_engines(work)
            if not self._too_late_to_search():
                self._promote(work, "full_screen", self.executor.screeners)
            reason = self._limit(work.count("journey"))
        while reason is None and work.count("journey") < room:
            work.add("journey", self._journey(self.asking.next()))
            reason = self._limit(len(work.tasks) if self.ladder is None else work.count("journey"))
        return reason

    def _references_first(self, work: Work) -> bool:
        """Whether engines are the library's yet. What is to be kept under way sets out before its last one answers."""
        assert self.config.screen is not None
        if not work.count("references"):
            return False
        ahead = self.executor.engines * self.config.screen.ahead
        return not ahead or self.references.left + self.references.under_way > ahead

    def _promote_to_engines(self, work: Work) -> None:
        """An engine without work takes the best there is; a screen without work is none."""
        assert self.config.screen is not None
        engines = self.executor.engines
        ahead = self.pipeline.supply.ahead(self.config.screen.ahead, engines, self.executor.screeners)
        room = engines * (1 + ahead) if ahead else engines + 1
        wanted = room if ahead else 1
        self._promote(work, "search", room, anyone=wanted - work.count("search"))

    def _promote(self, work: Work, purpose: ev.Purpose, room: int, *, anyone: int = 0) -> None:
        """Send on who is due, and `anyone` of them before their time."""
        assert self.ladder is not None
        most = self.config.limits.candidates - self.state.distinct_programs if purpose == "search" else room
        while work.count(purpose) < min(room, most):
            key = self.ladder.next(purpose, anyone=anyone > 0)
            if key is None:
                return
            self.record(ev.Promoted(key, purpose))
            work.add(purpose, self._measure(self.state.candidates[key]))
            anyone -= 1

    def _limit(self, open_journeys: int) -> str | None:
        """Why no further proposal may start now, if none may."""
        if self.asking.spent is not None:
            return self.asking.spent
        if self.asking.replayed:
            return "the recording's end"
        return reached(
            self.config.limits,
            self.state,
            active_seconds=self.active_seconds,
            gpu_seconds=self.gpu_seconds,
            under_way=open_journeys,
            screen=self.config.screen,
            anyway=self.config.finals.anyway,
            finals=self._finals_seconds(),
        )

    async def _journey(self, proposal: Proposal) -> None:
        answer = None
        if proposal.source is None:
            answer = await self.asking.answer(proposal)
            if answer is None:
                return
        candidate = await self.pipeline.trace(proposal, answer)
        if candidate is not None:
            await self._measure(candidate)

    def archive(self) -> Archive:
        """The ranking as of now."""
        return Archive(self.state, self.config.objective)

    def _stop_gently(self) -> None:
        """Let SIGTERM and Ctrl-C drain. After Ray's start, because Ray installs a handler that aborts."""
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):  # not the main thread: tests
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self.drain.stop, task)
