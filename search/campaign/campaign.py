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

from agents.base import Lesson, ProposalRequest, Proposer, Usage
from agents.errors import ProposerError
from search.campaign import feedback
from search.campaign.archive import Archive, reference_point, worth
from search.campaign.budget import reached
from search.campaign.drain import Drain
from search.campaign.finals import Finals
from search.campaign.front import Front
from search.campaign.lessons import Lessons
from search.campaign.live import LiveView
from search.campaign.pipeline import LibraryLoader, Pipeline, together
from search.campaign.replay import Recording
from search.campaign.strategies.base import Outcome, Strategy
from search.campaign.strategies.registry import make_strategy
from search.config import Arm, CampaignConfig
from search.errors import other_device, other_weights, proposer_down
from search.executors.base import Executor, Joined, Left, Notice
from search.log import events as ev
from search.log.run import Run
from search.log.state import CampaignState, Candidate, Proposal
from search.log.store import Record
from search.machine import device_words
from vortex_core.errors import VortexError


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
        self.proposers = proposers
        self.seed = seed
        self.model = model
        self.library = library
        self.watch = watch
        self.recording = recording
        self.lessons = Lessons(run.files, config.objective, carried)
        self.state = CampaignState()
        # Arms differ in their randomness, or a control would repeat the arm it is compared with.
        self.strategies: dict[str, Strategy] = {
            arm.name: make_strategy(arm.strategy, seed + 7919 * i) for i, arm in enumerate(config.arms)
        }
        self._fronts = {arm.name: Front(reference_point(config.objective)) for arm in config.arms}
        self._broken: dict[int, Proposal] = {}
        for record in run.store.read():
            self._apply(record)
        self.drain = Drain(config.cluster.drain, say)
        self.pipeline = Pipeline(run, config, executor, self.state, self.record, seed, self.drain)
        self._controls = {arm.name for arm in config.arms if arm.control}
        self._changed = asyncio.Event()
        self._live: LiveView | None = None
        self._spent: str | None = None
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
            case ev.CandidateFinished(key=key, purpose="search"):
                candidate = self.state.candidates[key]
                proposal = None if candidate.proposal is None else self.state.proposals[candidate.proposal]
                self._note_broken(proposal)
                # Dense is what all are compared with: there is nothing in it to go on from. A twin of a winner
                # is what the search found, not where it may begin.
                if not candidate.is_dense and key not in self.state.twins:
                    self._tell("scored", proposal, candidate)
            case ev.Rejected(proposal=number) | ev.ProposalFailed(proposal=number):
                self._note_broken(self.state.proposals[number])
                self._tell("rejected", self.state.proposals[number], None)
            case ev.Asked(repairs=repaired) if repaired is not None:
                self._broken.pop(repaired, None)
            case ev.Duplicate(proposal=number, key=key):
                self._tell("duplicate", self.state.proposals[number], self.state.candidates[key])

    def _tell(self, outcome: Outcome, proposal: Proposal | None, candidate: Candidate | None) -> None:
        told = feedback.make_tell(outcome, proposal, candidate, self.config.objective)
        # What the library offers is where every arm may begin; what one arm finds is its own.
        for name in self.strategies if proposal is None else (proposal.arm,):
            self.strategies[name].tell(told)
        if proposal is None:
            return
        gain = 0.0
        if outcome == "scored" and candidate is not None:
            point = worth(candidate, self.config.objective)
            gain = 0.0 if point is None else self._fronts[proposal.arm].add(point)
        if proposal.answered_by:
            member = proposal.answered_by
            self.proposers[proposal.arm].tell(
                member, gain, proposal.dollars, proposal.change or proposal.request
            )

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
        live = LiveView(self.run.folder, self.config, self._facts) if self.run.folder.is_dir() else None
        if live is not None:
            live.begin(self.state)
            self._live = live
            keeping = asyncio.create_task(live.keep(self.state, self._measure_self))
        self.record(*([started] if self.state.untouched else []), session)
        try:
            devices = await self.executor.start(self._noticed)
            self._take_up(devices)
            self._stop_gently()
            await self._references()
            reason = await self._search()
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

    async def _references(self) -> None:
        keys = []
        for reference in self.config.references:
            flow, source = self.library(reference.flow, reference.knobs)
            if flow.key not in self.state.candidates:
                self.pipeline.admit(flow, source, None)
            keys.append(flow.key)
        waiting = [c for c in map(self.state.candidates.__getitem__, keys) if c.status() == "waiting"]
        unfinished = any(c.status() == "waiting" for c in self.state.candidates.values())
        if unfinished or self._limit(0) is None:
            await self.pipeline.dense_reference("search")
        await together(self.pipeline.evaluate(c, "search", late=self._too_late_to_search) for c in waiting)

    def _too_late_to_search(self) -> bool:
        """Whether the time for the search is used up: references would be compared with nothing."""
        seconds = self.config.limits.search_seconds
        return seconds is not None and self.active_seconds >= seconds

    def _time_is_up(self) -> bool:
        """Whether the time budget, that of the finals included, is used up."""
        seconds = self.config.limits.seconds
        return seconds is not None and self.active_seconds >= seconds

    async def _search(self) -> str:
        """Run journeys until a limit is reached; returns which."""
        tasks: set[asyncio.Task[None]] = set()
        for candidate in self.state.found:
            if candidate.status() == "waiting":
                tasks.add(asyncio.create_task(self.pipeline.evaluate(candidate, "search")))
        for proposal in self.state.proposals.values():
            if proposal.outcome == "open":
                tasks.add(asyncio.create_task(self._journey(proposal)))
        try:
            while True:
                room = self.executor.engines * self.config.cluster.lookahead + 1
                reason = self._limit(len(tasks))
                while reason is None and len(tasks) < room:
                    proposal = self._ask()
                    tasks.add(asyncio.create_task(self._journey(proposal)))
                    reason = self._limit(len(tasks))
                if not tasks:
                    assert reason is not None
                    return reason
                self._changed.clear()
                news = asyncio.create_task(
                    self._changed.wait()
                )  # an engine more: there is room for another ask
                done, _ = await asyncio.wait({*tasks, news}, return_when=asyncio.FIRST_COMPLETED)
                news.cancel()
                done.discard(news)
                tasks -= done
                failures = [error for task in done if (error := task.exception()) is not None]
                if failures:  # all were read: asyncio reports what nobody asked for
                    raise failures[0]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _limit(self, open_journeys: int) -> str | None:
        """Why no further proposal may start now, if none may."""
        if self._spent is not None:
            return self._spent
        if self.recording is not None and len(self.state.proposals) + 1 not in self.recording.asks:
            return "the recording's end"
        return reached(
            self.config.limits,
            self.state,
            active_seconds=self.active_seconds,
            gpu_seconds=self.gpu_seconds,
            under_way=open_journeys,
        )

    # -- asking ------------------------------------------------------------------------------------------

    def _ask(self) -> Proposal:
        """The next request: a repair if one is due, else for the arm furthest behind its share."""
        number = len(self.state.proposals) + 1
        if self.recording is not None:
            self.record(self.recording.asks[number])
            return self.state.proposals[number]
        broken = self._broken[min(self._broken)] if self._broken else None
        if broken is not None:
            self.record(
                ev.Asked(
                    number, broken.arm, "repair", broken.parents, broken.seed + 1, broken.proposer, broken.id
                )
            )
            return self.state.proposals[number]
        arm = self._next_arm()
        ask = self.strategies[arm.name].ask(self.state.asks(arm.name))
        self.record(
            ev.Asked(number, arm.name, ask.kind, ask.parents, ask.seed, self.proposers[arm.name].name)
        )
        return self.state.proposals[number]

    def _next_arm(self) -> Arm:
        return min(self.config.arms, key=lambda arm: (self.state.asks(arm.name) + 1) / arm.share)

    def _note_broken(self, proposal: Proposal | None) -> None:
        """Remember a proposal that its author may be asked to mend."""
        if proposal is None or proposal.depth >= self.config.repairs:
            return
        if not self.proposers[proposal.arm].repairs:
            return
        if not proposal.repaired and feedback.repair_error(proposal, self.state):
            self._broken[proposal.id] = proposal

    async def _journey(self, proposal: Proposal) -> None:
        if proposal.source is None and not await self._propose(proposal):
            return
        candidate = await self.pipeline.trace(proposal)
        if candidate is not None:
            await self.pipeline.evaluate(candidate, "search")

    def _request(self, proposal: Proposal) -> ProposalRequest:
        if self.recording is not None:  # answered by its number
            return ProposalRequest(kind="seed", seed=proposal.seed, number=proposal.id)
        in_words = self.proposers[proposal.arm].needs_language
        return feedback.make_request(
            proposal,
            self.state,
            self.run.files,
            self.config.objective,
            self.model,
            in_words=in_words,
            alone=proposal.arm in self._controls,
            lessons=self.lessons.now(self.state) if in_words else (),
            book=lambda who, tokens, dollars: self.record(ev.CallBooked(proposal.id, who, tokens, dollars)),
        )

    async def _propose(self, proposal: Proposal) -> bool:
        async with self.drain.work():  # what is paid for is waited for, and recorded
            return await self._ask_proposer(proposal)

    async def _ask_proposer(self, proposal: Proposal) -> bool:
        request = self._request(proposal)
        began = time.monotonic()
        try:
            answer = await self.proposers[proposal.arm].propose(request)
        except VortexError as error:
            used = error.usage if isinstance(error, ProposerError) else Usage()
            self.record(
                ev.ProposalFailed(
                    proposal.id,
                    error.to_json(),
                    time.monotonic() - began,
                    used.input_tokens,
                    used.output_tokens,
                    used.dollars,
                    used.calls,
                    error.proposer if isinstance(error, ProposerError) else "",
                    error.kind if isinstance(error, ProposerError) else "",
                    used.cached_tokens,
                )
            )
            if self.recording is None:
                self._judge(error)
            return False
        self.record(
            ev.Proposed(
                proposal.id,
                self.run.files.put(answer.source, ".py"),
                answer.idea,
                answer.proposer,
                time.monotonic() - began,
                answer.usage.input_tokens,
                answer.usage.output_tokens,
                answer.usage.dollars,
                answer.usage.calls,
                prompt=self.run.files.put(answer.prompt, ".txt") if answer.prompt else "",
                reply=self.run.files.put(answer.reply, ".txt") if answer.reply else "",
                change=answer.kind,
                cached_tokens=answer.usage.cached_tokens,
            )
        )
        return True

    def _judge(self, error: VortexError) -> None:
        """What a failed ask means for the campaign. A budget that is used up ends the search, with finals; what
        only a person can mend pauses it; anything else may pass, for as long as the patience lasts."""
        failures = self.state.proposer_failures_in_a_row
        patient = failures < self.config.proposer_patience
        if error.fault == "budget" and not (error.retryable and patient):
            again = f" {failures} times in a row" if error.retryable else ""
            self._spent = f"the proposer's budget: {error.message}{again}"
        elif error.fault == "user" and not error.retryable:
            raise error
        elif not patient:
            raise proposer_down(failures, str(error)) from error

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
