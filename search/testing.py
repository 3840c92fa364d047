"""Public conformance suites of the search layer, and a simulation to run a campaign without any model.

A third party's store or strategy is checked by subclassing a suite and saying how to build one:

    class TestMyStore(StoreConformance):
        def open(self, tmp_path): return MyStore(tmp_path / "log")
"""

from __future__ import annotations

import asyncio
import inspect
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from agents.base import Proposal, ProposalRequest, Proposer, Usage
from evaluators.results import Failure, Metric, StageResult
from search.campaign.archive import Verdict
from search.campaign.strategies.base import Outcome, Strategy, Tell, randomness
from search.executors.base import Notice, StageRun, WorkerLostError
from search.log import events as ev
from search.log.state import CampaignState
from search.log.store import EventStore, SqliteEventStore
from vortex_core.errors import VortexError
from vortex_core.flow import ops, vFlow
from vortex_core.flow.trace import trace
from vortex_core.ir.flow import Flow

EXAMPLES: tuple[ev.Event, ...] = (
    ev.CampaignStarted("r", {"seed": 0}, {"items": 3}, {"python": "3"}, {"cpus": 2}),
    ev.SessionStarted(7, {"limits": {"candidates": 3}}),
    ev.Asked(1, "main", "mutate", ("a", "b"), 5, "grammar"),
    ev.ProposalFailed(1, {"code": "VA1", "message": "é·漢"}, 0.5),
    ev.CampaignPaused("interrupted"),
)


class StoreConformance:
    """What every `EventStore` must do."""

    def open(self, tmp_path: Path) -> EventStore:
        """A new empty store, or the one opened before at the same place if it persists."""
        raise NotImplementedError

    def test_reads_back_what_was_appended_in_order(self, tmp_path: Path) -> None:
        """Order, numbering and content survive."""
        store = self.open(tmp_path)
        first = store.append(*EXAMPLES[:2])
        second = store.append(*EXAMPLES[2:])
        records = list(store.read())
        assert records == first + second
        assert [r.seq for r in records] == list(range(1, len(EXAMPLES) + 1))
        assert tuple(r.event for r in records) == EXAMPLES
        store.close()

    def test_reads_after_a_number(self, tmp_path: Path) -> None:
        """A reader can follow the log."""
        store = self.open(tmp_path)
        store.append(*EXAMPLES)
        assert [r.seq for r in store.read(after=3)] == [4, 5]
        assert list(store.read(after=5)) == []
        store.close()

    def test_an_append_is_all_or_nothing(self, tmp_path: Path) -> None:
        """An event that cannot be stored takes the others of its append with it."""
        store = self.open(tmp_path)
        store.append(EXAMPLES[0])
        bad = ev.SessionStarted(1, {"not json": object()})
        try:
            store.append(EXAMPLES[1], bad)
        except TypeError:
            pass
        else:
            raise AssertionError("an event that is not JSON was accepted")
        assert [r.event for r in store.read()] == [EXAMPLES[0]]
        assert [r.seq for r in store.append(EXAMPLES[1])] == [2]
        store.close()

    def test_closing_twice_is_harmless(self, tmp_path: Path) -> None:
        """`close` may be called again."""
        store = self.open(tmp_path)
        store.close()
        store.close()


_OUTCOMES: tuple[Outcome, ...] = ("scored", "scored", "stopped", "rejected", "duplicate")


class StrategyConformance:
    """What every `Strategy` must do."""

    def make(self, seed: int) -> Strategy:
        """A new strategy."""
        raise NotImplementedError

    def history(self, strategy: Strategy, asks: int, seed: int = 0) -> list[Tell]:
        """Drive a strategy through plausible outcomes, told out of order; returns the tells."""
        rng = randomness(seed, -1)
        told = [
            Tell(None, "scored", f"ref{i}", f"ir-ref{i}", rng.random() - 1, 1 + rng.random(), Verdict.UNCLEAR)
            for i in range(2)
        ]
        for tell in told:
            strategy.tell(tell)
        waiting: list[Tell] = []
        for n in range(asks):
            ask = strategy.ask(n)
            asked = Tell(n, "asked", parents=ask.parents, point=ask.point, by=ask.by)
            strategy.tell(asked)
            told.append(asked)
            outcome = rng.choice(_OUTCOMES)
            accuracy, speed = None, None
            if outcome == "scored":
                accuracy, speed = rng.uniform(-0.3, 0.1), rng.uniform(0.8, 3.0)
            key, ir_hash = f"k{n}", f"ir{n % 7}"
            if outcome == "rejected":
                key = ir_hash = ""
            elif outcome == "duplicate":
                key, ir_hash = "ref0", "ir-ref0"
            verdict = rng.choice(list(Verdict))
            told_of = Tell(n, outcome, key, ir_hash, accuracy, speed, verdict, ask.parents)
            if accuracy is not None:
                told_of = replace(told_of, low=accuracy - 0.05, high=accuracy + 0.05, cell=f"cell{n % 3}")
            waiting.append(replace(told_of, size=10 + n % 5, point=ask.point, by=ask.by))
            if len(waiting) > 2:
                told.append(waiting.pop(rng.randrange(len(waiting))))
                strategy.tell(told[-1])
        return told

    def test_its_settings_are_its_keywords(self) -> None:
        """A campaign file says what the constructor takes, with defaults that make a strategy, and nothing else."""
        made = self.make(0)
        settings = type(made).settings
        keywords = [p for p in inspect.signature(type(made)).parameters if p != "seed"]
        assert sorted(settings.model_fields) == sorted(keywords)
        assert isinstance(type(made)(0, **dict(settings())), type(made))
        assert settings.model_config.get("extra") == "forbid", (
            "derive `settings` from vortex_core.configs.Strict"
        )

    def test_asks_are_well_formed(self) -> None:
        """Parents are told, scored candidates, as many as the kind needs."""
        strategy = self.make(1)
        known: set[str] = set()
        needed = {"seed": 0, "mutate": 1, "crossover": 2, "tune": 1, "simplify": 1}
        for tell in self.history(self.make(1), 40):
            for n in range(3):
                ask = strategy.ask(n)
                assert len(ask.parents) == needed[ask.kind]
                assert bool(ask.point) == (ask.kind == "tune")
                assert all(0 <= x <= 1 for x in ask.point)
                assert len(set(ask.parents)) == len(ask.parents)
                assert set(ask.parents) <= known
                assert ask.seed >= 0
            strategy.tell(tell)
            if tell.accuracy is not None:
                known.add(tell.key)

    def test_asking_changes_nothing(self) -> None:
        """The same ask twice, in any order, gives the same answer."""
        strategy = self.make(2)
        self.history(strategy, 30)
        forward = [strategy.ask(n) for n in range(20)]
        backward = [strategy.ask(n) for n in reversed(range(20))]
        assert forward == backward[::-1]

    def test_replaying_tells_rebuilds_the_state(self) -> None:
        """A resumed campaign asks what the first one would have asked."""
        first, second = self.make(3), self.make(3)
        for tell in self.history(first, 40):
            second.tell(tell)
        assert [first.ask(n) for n in range(40, 60)] == [second.ask(n) for n in range(40, 60)]

    def test_a_candidate_may_be_told_again(self) -> None:
        """A better measurement replaces the first, and one that a dearer stage stopped is no parent any more."""
        strategy = self.make(5)
        strategy.tell(Tell(None, "scored", "a", "ir-a", 0.0, 1.5, Verdict.PROVEN))
        strategy.tell(Tell(0, "scored", "b", "ir-b", 0.1, 2.0, Verdict.PROVEN, cell="b"))
        strategy.tell(Tell(0, "scored", "b", "ir-b", 0.0, 2.0, Verdict.FAILED, cell="b"))
        strategy.tell(Tell(0, "stopped", "b", "ir-b"))
        assert not any("b" in strategy.ask(n).parents for n in range(60))

    def test_proposal_seeds_differ(self) -> None:
        """Two asks for the same thing must be able to give different programs."""
        strategy = self.make(4)
        seeds = Counter(strategy.ask(n).seed for n in range(200))
        assert len(seeds) == 200


_SIMULATED_STAGES: dict[ev.Purpose, tuple[str, ...]] = {
    "screen": ("screen",),
    "full_screen": ("full_screen",),
    "second": ("second",),
    "search": ("static", "accuracy", "modelled"),
    "fresh": ("accuracy", "modelled"),
    "holdout": ("holdout",),
    "serving": ("serving",),
}


class Crash(BaseException):
    """Stands for `kill -9`: raised from inside an append, caught by nothing."""


class SimulatedProposer(Proposer):
    """Writes "programs" that are JSON: a point of the plane that `SimulatedExecutor` measures.

    Args:
        delay: seconds a proposal takes.
    """

    def __init__(self, name: str = "simulated", delay: float = 0.0) -> None:
        self.name = name
        self.delay = delay
        self.requests: list[ProposalRequest] = []

    async def propose(self, request: ProposalRequest) -> Proposal:
        """See `Proposer`: moves a little from the first parent."""
        self.requests.append(request)
        await asyncio.sleep(self.delay)
        rng = randomness(request.seed, 0)
        if request.failed is not None:
            program = json.loads(request.failed.source) | {"broken": False}
        else:
            x = point_of(request.parents[0].flow) if request.parents else 0.5
            broken = rng.random() < 0.1
            program = {"x": round(min(1.0, max(0.0, x + rng.uniform(-0.2, 0.2))), 2), "broken": broken}
        usage = Usage(input_tokens=100, output_tokens=10, dollars=0.01, calls=1)
        return Proposal(json.dumps(program), f"x={program['x']}", self.name, usage)


class SimulatedExecutor:
    """Measures points of the plane: accuracy falls with `x`, speed rises; some points fail a stage.

    Args:
        fail: called before every stage with (stage, key, attempt); may raise `WorkerLostError`.
        delay: seconds a stage takes.
        lanes: engines.
        device: their name.
    """

    def __init__(
        self,
        fail: Callable[[str, str, int], None] | None = None,
        delay: float = 0.0,
        lanes: int = 1,
        device: str = "simulated",
    ) -> None:
        self.lanes = lanes
        self.device = device
        self.most_at_once = 0
        self._at_once = 0
        self.ran: Counter[tuple[str, str, int]] = Counter()
        self.traced: Counter[str] = Counter()
        self.references: Counter[str] = Counter()
        self.fail = fail
        self.delay = delay
        self.closed = False
        self.facts: dict[str, Any] = {}

    @property
    def engines(self) -> int:
        """See `Executor`."""
        return self.lanes

    @property
    def screeners(self) -> int:
        """See `Executor`."""
        return self.lanes

    async def record(self, seed: int) -> None:
        """See `Executor`."""
        self.references["recorded"] += 1

    async def start(self, notice: Callable[[Notice], None]) -> list[dict[str, Any]]:
        """See `Executor`."""
        facts = {"kind": "cpu", "name": self.device, "host": "simulated", "ranks": 1}
        return [facts | self.facts] * self.lanes

    def stages(self, purpose: ev.Purpose) -> tuple[str, ...]:
        """See `Executor`."""
        return _SIMULATED_STAGES[purpose]

    def needs_engine(self, stage: str) -> bool:
        """See `Executor`."""
        return stage in ("accuracy", "holdout")

    async def trace(self, source: str) -> Flow:
        """See `Executor`."""
        self.traced[source] += 1
        await asyncio.sleep(self.delay)
        program = json.loads(source)
        if program.get("broken"):
            raise VortexError("VF012", "the program is broken", "mend it")
        return simulated_flow(program["x"])

    async def run_stage(self, stage: str, flow: Flow, seed: int) -> StageRun:
        """See `Executor`."""
        on_engine = self.needs_engine(stage)
        self._at_once += on_engine
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            result = await self.measure(stage, flow, seed)
        finally:
            self._at_once -= on_engine
        return StageRun(result, "simulated" if on_engine else "")

    async def measure(self, stage: str, flow: Flow, seed: int) -> StageResult:
        """What a stage finds."""
        self.ran[flow.key, stage, seed] += 1
        await asyncio.sleep(self.delay)
        if self.fail is not None:
            self.fail(stage, flow.key, self.ran[flow.key, stage, seed])
        return _measured(stage, point_of(flow), seed)

    async def reference(self, purpose: ev.Purpose, seed: int, known: dict[str, Any] | None) -> dict[str, Any]:
        """See `Executor`."""
        if known is not None:
            return known
        self.references[purpose] += 1
        return {"purpose": purpose, "seed": seed, "needle": [1.0] * 40}

    async def close(self) -> None:
        """See `Executor`."""
        self.closed = True


def simulated_stage(stage: str, flow: dict[str, Any], seed: int) -> StageResult:
    """What a stage finds of a flow that came as JSON: for workers in processes of their own."""
    return _measured(
        stage, point_of(Flow.from_json({k: flow[k] for k in ("name", "program", "knobs", "doc")})), seed
    )


def _measured(stage: str, x: float, seed: int) -> StageResult:
    if stage == "serving":
        return StageResult(stage, True, {"serving_speedup": Metric(1 + x, 1 + x / 2, 1 + 2 * x, unit="x")})
    if stage in ("screen", "full_screen"):
        value = 1 - 0.3 * x * x
        found = {
            "screen_beyond": Metric(value, value - 0.01, value + 0.01, how="recorded"),
            "screen_own_output": Metric(1 - 0.1 * abs(x - 0.3), how="recorded"),
            "state_share": Metric(0.2 * (1 - x), higher_is_better=False, how="modelled"),
            "modelled_speedup_h200": Metric(1 + 2 * x, how="modelled"),
        }
        return StageResult(stage, True, found, seconds=0.001)
    if stage == "static":
        return StageResult(stage, passed=True, seconds=0.001)
    if stage == "modelled":
        return StageResult(
            stage, True, {"modelled_speedup_h200": Metric(1 + 2 * x, how="modelled")}, seconds=0.001
        )
    if round(x * 100) % 13 == 12:
        error = VortexError("VV104", "recall too low", "keep more pages", fault="candidate")
        metrics = {"recall": Metric(0.1)}
        return StageResult(stage, False, metrics, failure=Failure.of(error), seconds=0.01)
    rng = randomness(seed, round(x * 100))
    items = [float(rng.random() > 0.3 * x * x) for _ in range(40)]
    delta = sum(items) / 40 - 1
    return StageResult(
        stage,
        True,
        {
            "accuracy": Metric(sum(items) / 40, n=40),
            "accuracy_delta": Metric(delta, delta - 0.05, delta + 0.05, n=40),
        },
        {"needle": items},
        {"worst_task": "needle"},
        seconds=0.01,
    )


@lru_cache(maxsize=65536)
def simulated_flow(x: float, name: str = "") -> Flow:
    """The flow that stands for a point: a page's score is at least `1 + x`.

    One of the library, with a budget of its own, if it is named.
    """

    class Point(vFlow):
        def create_cache(self, page):  # type: ignore[no-untyped-def]
            return {"mean": page.state(dim=page.head_dim)}

        def forward_cache(self, page):  # type: ignore[no-untyped-def]
            return {"mean": page.k.mean("token")}

        def forward_indexer(self, q, cache):  # type: ignore[no-untyped-def]
            return ops.topk(ops.maximum((q * cache["mean"]).sum("dim").max("head"), 1 + round(x, 2)))

    flow = trace(Point).flow
    return replace(flow.with_knobs(budget="512"), name=name) if name else replace(flow, name=f"point_{x:.2f}")


def point_of(flow: Flow) -> float:
    """The point that a simulated flow stands for."""
    value = next(float(node.attr["value"]) for node in flow.program.index.nodes if node.op == "const")
    return round(value - 1, 2)


def simulated_library(flow: str, knobs: dict[str, Any]) -> tuple[Flow, str]:
    """A library of named points."""
    x = {"dense": 0.0, "quest": 0.31, "block_topk": 0.45}[flow]
    found = simulated_flow(x, flow)
    if knobs:
        found = replace(found.with_knobs(**knobs), name=f"{flow} with knobs")
    return found, json.dumps({"x": x})


def lost(*, timed_out: bool = False) -> WorkerLostError:
    """The error of a worker that died."""
    return WorkerLostError(VortexError("VS008", "killed", ""), timed_out=timed_out)


def simulated_campaign(
    root: Path,
    name: str,
    *,
    candidates: int,
    engine: dict[str, Any] | None = None,
    executor: SimulatedExecutor | None = None,
) -> CampaignState:
    """A campaign on disk without a model: what commands on runs are tried with.

    Args:
        root: folder of runs.
        name: of the run; an existing one is resumed.
        candidates: distinct programs wanted.
        engine: further facts of the engine, e.g. its `versions` and `weights`.
        executor: runs stages.
    """
    from search.campaign.campaign import Campaign
    from search.config import CampaignConfig
    from search.log.run import open_run

    config = CampaignConfig.model_validate(
        {
            "references": ["dense", "quest", "block_topk"],
            "objective": {"gates": [{"metric": "accuracy_delta", "at_least": -0.25}], "margin": 0.1},
            "arms": [
                {"name": "evolve", "strategy": {"kind": "evolve"}, "share": 2},
                {"name": "random", "strategy": {"kind": "random"}, "control": True},
            ],
            "limits": {"candidates": candidates},
        }
    )
    settings = {
        "campaign": config.model_dump(mode="json", exclude={"limits", "cluster", "serving", "description"})
    }
    limits = config.model_dump(mode="json", include={"limits", "cluster", "serving"})
    executor = executor or SimulatedExecutor()
    executor.facts = engine or {}
    with open_run(name, readonly=False, root=root) as run:
        proposers = {arm.name: SimulatedProposer() for arm in config.arms}
        campaign = Campaign(
            run, config, executor, proposers, seed=1, model={"name": "sim"}, library=simulated_library
        )
        started = ev.CampaignStarted(name, settings, {}, {}, {})
        assert isinstance(run.store, SqliteEventStore)
        run.store.durable(False)
        return asyncio.run(campaign.run_to_end(started, ev.SessionStarted(1, limits)))
