"""Campaign and proposer configurations: YAML files under `configs/`, validated strictly, every key read."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from search.campaign.strategies.registry import STRATEGIES
from search.errors import UNKNOWN_NAME
from search.log.state import USER
from vortex_core.configs import ConfigFolder, Strict, read_rest
from vortex_core.errors import VortexError


class Gate(Strict):
    """A bound that a metric must keep.

    The bound is proven when the whole interval keeps it, unclear when only the value does.
    """

    metric: str
    at_least: float | None = None
    at_most: float | None = None

    @model_validator(mode="after")
    def _one_side(self) -> Gate:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("give at_least or at_most, one of the two")
        return self


class Objective(Strict):
    """What is optimised: two metrics, both to be raised, behind gates.

    Attributes:
        accuracy: metric of quality, paired with dense.
        speed: metric of throughput, as a ratio to dense.
        gates: non-inferiority bounds; a program that fails one cannot win.
        target: engine that is to run the winner, None as the evaluation plan says. What it would refuse is stopped
            before anything is measured.
        margin: loss of accuracy, in its own units, that counts as none when two programs are compared.
    """

    accuracy: str = "accuracy_delta"
    speed: str = "modelled_speedup_h200"
    gates: tuple[Gate, ...] = ()
    target: Literal["embedded", "sglang"] | None = None
    margin: float = Field(0.05, ge=0)


class ScreenModel(Strict):
    """A further model to screen on; `evaluation`: the plan whose prompts are recorded, None for the campaign's. A model
    that reads another alphabet, such as `retrieval-gqa`, needs one of its own."""

    model: str
    evaluation: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"model": value} if isinstance(value, str) else value


class Screen(Strict):
    """Programs are screened on recorded attention; few of them answer.

    Successive halving without rounds: as soon as `full` programs have been screened, the best of them by Pareto rank
    that has not gone on goes on, and so again after `full` more; likewise from the full screen to answers.

    Attributes:
        accuracy: metric of the screen that stands for accuracy.
        speed: metric of speed; None: the objective's.
        gates: bounds; a program that fails one does not go on.
        most_state: share of the KV bytes that page states may take; None: no limit.
        programs: distinct programs to screen.
        layers: layers in which every program is scored.
        full_layers: layers in which those that go on are.
        models: further models on whose recorded attention those that go on are scored: programs that live by the
            rotary frequencies of one model do not carry over. The mean over the models counts.
        full: one in this many screened programs goes on to the full screen.
        answers: one in this many of those answers.
        ahead: how many more are kept under way to each engine than it serves, the best there are, whatever `answers`
            says: an engine on a GPU costs more than what it is given to do. Where candidates take long to be ready it
            is more, up to half the CPU workers (`search.campaign.turns.Supply`). 0: an engine is given somebody before
            his turn only where it has nobody, as engines on a CPU share its cores with the screen.
        references: of the references that a grid names so many answer, chosen as programs are, so that a grid may hold
            the whole library at many budgets. Those named one by one always answer. 0: all.
    """

    accuracy: str = "screen_beyond"
    speed: str | None = None
    gates: tuple[Gate, ...] = ()
    most_state: float | None = Field(None, gt=0)
    programs: int = Field(3000, ge=0)
    layers: int = Field(2, ge=1)
    full_layers: int = Field(8, ge=1)
    models: tuple[ScreenModel, ...] = ()
    full: int = Field(5, ge=1)
    answers: int = Field(4, ge=1)
    ahead: int = Field(0, ge=0)
    references: int = Field(0, ge=0)

    def objective(self, whole: Objective) -> Objective:
        """What is optimised on the screen; made once, as every look at a candidate asks for it."""
        known = _on_screen.get((id(self), id(whole)))
        if known is None:
            gates = self.gates
            if self.most_state is not None:
                gates = (*gates, Gate(metric="state_share", at_most=self.most_state))
            made = whole.model_copy(
                update={"accuracy": self.accuracy, "speed": self.speed or whole.speed, "gates": gates}
            )
            if len(_on_screen) > 64:
                _on_screen.clear()
            known = _on_screen[id(self), id(whole)] = (self, whole, made)  # kept, so the numbers stay theirs
        return known[2]


_on_screen: dict[tuple[int, int], tuple[Screen, Objective, Objective]] = {}


class StrategyConfig(BaseModel):
    """A strategy by name; its other keys are the strategy's own settings, validated by the strategy."""

    model_config = ConfigDict(extra="allow", frozen=True)

    kind: str

    _settings: Strict = PrivateAttr()

    @model_validator(mode="after")
    def _validated_by_the_strategy(self) -> StrategyConfig:
        try:
            schema = STRATEGIES.get(self.kind).settings
        except VortexError as error:
            raise ValueError(f"kind: {error.message} ({error.remedy})") from error
        self._settings = read_rest(self, schema, f"strategy {self.kind}")
        return self

    @property
    def settings(self) -> Strict:
        """The strategy's own settings."""
        return self._settings


class Arm(Strict):
    """One strategy with its share of the proposals.

    Attributes:
        name: for people; unique in the campaign.
        share: weight against the other arms.
        control: whether it is there to be compared with, not to win.
        proposer: overrides the campaign's proposer (a control may need none but the grammar).
    """

    name: str
    strategy: StrategyConfig
    share: float = Field(1.0, gt=0)
    control: bool = False
    proposer: str | None = None


_FINALS = 0.4
"""Share of a run's time that its finals may take at most."""


class Limits(Strict):
    """When to stop. A limit bounds new proposals; what was paid for is still evaluated.

    Attributes:
        candidates: distinct programs (by IR hash) to finish, references not counted.
        evaluations: candidates to finish, programs under other knobs counted each; None is no limit.
        seconds: active time of the whole run, references and finals included.
        finals_seconds: part of `seconds` kept for the finals; of a short run, two fifths.
        gpu_seconds: time of GPUs held by engines, the whole run's; bounds the search, not its finals.
        dollars: spending on proposers with a known price; None is no limit.
        tokens: read and written by proposers; the one cap on a model whose price is unknown.
        calls: of language models.
    """

    candidates: int = Field(36, ge=0)
    evaluations: int | None = Field(None, ge=0)
    seconds: float | None = Field(None, gt=0)
    finals_seconds: float = Field(90, ge=0)
    gpu_seconds: float | None = Field(None, gt=0)
    dollars: float | None = Field(None, ge=0)
    tokens: int | None = Field(None, ge=0)
    calls: int | None = Field(None, ge=0)

    @property
    def kept_for_finals(self) -> float:
        """Seconds of the run that are the finals'."""
        return (
            self.finals_seconds if self.seconds is None else min(self.finals_seconds, _FINALS * self.seconds)
        )


class Cluster(Strict):
    """Where stages are executed, and how. `search.executors.placement` decides what is left open.

    Attributes:
        address: an existing Ray cluster (`auto` or host:port), or None to start one on this machine.
        device: of the engines; `auto` is the GPUs where there are any.
        gpus: GPUs to use; None is all there are.
        tensor_parallel: GPUs (on a CPU: processes) that hold one engine together.
        engines: resident engines; None is as many as the GPUs hold, or one on a CPU.
        threads: CPU threads of each engine's process; None is its share of its machine's cores.
        cpu_tasks: workers for what needs no engine, the screen among it; None is the cores that are left beside GPU
            engines (8 at most), or one beside a CPU engine.
        lookahead: proposals in flight or waiting for an engine, per engine.
        retries: times a stage is run again after a worker died under it.
        deadline: seconds a stage may take before its process group is killed. Waiting for a worker does not count.
        deadlines: other deadlines, by stage.
        start_deadline: seconds to load a model and prefill the evaluation prompts, and for which a campaign waits
            when no engine is left.
        share: weight against other campaigns on the same cluster.
        keep: seconds that engines on a cluster outlive their campaign, for the next one of the same model.
        drain: seconds that stages under way may take to end after Ctrl-C, SIGTERM or on a node about to go.
        double_after: a stage that takes so many times the 95th percentile of its kind is given to a second worker
            too, if one is idle; 0 is never.
    """

    address: str | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    gpus: int | None = Field(None, ge=1)
    tensor_parallel: int = Field(1, ge=1)
    engines: int | None = Field(None, ge=1)
    threads: int | None = Field(None, ge=1)
    cpu_tasks: int | None = Field(None, ge=1)
    lookahead: int = Field(2, ge=1)
    retries: int = Field(2, ge=0)
    deadline: float = Field(120, gt=0)
    deadlines: dict[str, float] = Field(default_factory=dict)
    start_deadline: float = Field(1800, gt=0)
    share: float = Field(1.0, gt=0)
    keep: float = Field(300, ge=0)
    drain: float = Field(30, ge=0)
    double_after: float = Field(4.0, ge=0)

    def deadline_of(self, stage: str) -> float:
        """Seconds `stage` may take."""
        return self.deadlines.get(stage, self.deadline)


class Serving(Strict):
    """SGLang as last judge of finalists; see `evaluators.stages.serving`.

    Attributes:
        finalists: programs that are served, each beside SGLang's dense backend: the winner first, then what else was
            found and kept the gates on fresh items, then the library's rival.
        batch: sequences decoded together.
        context: prompt tokens of each.
        rounds: times both are measured, order alternating.
        dense: SGLang attention backend of the dense arm; None: SGLang's default.
        options: further arguments of `sglang.Engine`. Both engines share a GPU.
        python: interpreter of SGLang's environment; None: `$VORTEX_SGLANG_PYTHON`, else this one.
        variables: further environment variables of the engines.
        deadline: seconds that one finalist may take, starts of both engines included.
    """

    finalists: int = Field(2, ge=1)
    batch: int = Field(16, ge=1)
    context: int = Field(16384, ge=1)
    rounds: int = Field(4, ge=1)
    dense: str | None = None
    options: dict[str, Any] = Field(default_factory=lambda: {"mem_fraction_static": 0.4})
    python: str | None = None
    variables: dict[str, str] = Field(default_factory=dict)
    deadline: float = Field(1800, gt=0)


class SecondModel(Strict):
    """A model that the search never sees, with the plan by which it is asked."""

    model: str
    evaluation: str


class Finals(Strict):
    """What happens to the best at the end.

    Attributes:
        elites: found candidates measured again on fresh seeds, beside the best library flow.
        most: found candidates measured again at most: while none keeps the gates, the next best are tried.
        anyway: whether one program answers, and the best found meets fresh items, even where the time is used up (by a
            half more at most is it searched for) or none kept the gates on the search's items, which were a handful.
        holdout: whether the winner and the best library flow meet the sealed set, once.
        matched: whether the best library flow is also run with the winner's knobs.
        peers: library flows of at most the winner's state bytes that are run with the winner's knobs and compared with
            it on the sealed items, this many: half of them the best by what they answered, the rest by the screen.
        second: whether the winner and the best peer also answer on a model that the search never saw.
    """

    elites: int = Field(3, ge=0)
    most: int = Field(8, ge=0)
    anyway: bool = False
    holdout: bool = True
    matched: bool = True
    peers: int = Field(0, ge=0)
    second: SecondModel | None = None


LIBRARY = "library"
"""The name of all flows of the library together."""


def _whole() -> tuple[str, ...]:
    from vortex_core import library

    return *(name for name in library.names() if name != "dense"), *library.found_names()


class Reference(Strict):
    """Library flows, or paths of one's own, measured beside the candidates.

    Attributes:
        flow: one, or several that are measured alike; `library` is every flow of the library that needs no values of
            its own, and every one that campaigns found.
        knobs: settings that differ from the flow's own.
        grid: knobs with several values each; every combination is measured, or the best on the screen are
            (`Screen.references`).
    """

    flow: str | Annotated[tuple[str, ...], Field(min_length=1)]
    knobs: dict[str, Any] = Field(default_factory=dict)
    grid: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = Field(default_factory=dict)

    def each(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Every flow with its settings."""
        flows = (self.flow,) if isinstance(self.flow, str) else self.flow
        for flow in (each for name in flows for each in (_whole() if name == LIBRARY else (name,))):
            for values in product(*self.grid.values()):
                yield flow, self.knobs | dict(zip(self.grid, values, strict=True))

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"flow": value} if isinstance(value, str) else value


class CampaignConfig(Strict):
    """A campaign file.

    Attributes:
        model: default model.
        accuracy_model: model whose answers are scored, where it is not `model`: for models without weights here.
        random_weights: give `model` its true shape and random numbers; then only speed is asked of it.
        proposer: default proposer: the name of a file in `configs/proposers` or a specification.
        evaluation: name of a plan in `configs/evaluation`, or a path.
        references: library flows, or paths of one's own, measured first; the search begins at them.
        screen: how programs are screened before they answer; None: every program answers.
        knobs: settings that every candidate has, whatever its author says: programs are then compared at one operating
            point.
        written_for: seconds in which two quiet cores get through the plan's items and have time to search. On a CPU
            that gets less done in the time limit (`search.pace`) fewer items are asked, so that there are answers to
            compare; decided once a run, when it begins. None: all are asked.
        repairs: rounds in which an LLM may mend a program that was refused.
        proposer_patience: failures in a row after which the campaign pauses.
    """

    description: str = ""
    model: str = "smollm2-135m"
    accuracy_model: str | None = None
    random_weights: bool = False
    proposer: str = "grammar"
    evaluation: str = "default"
    objective: Objective = Objective()
    references: tuple[Reference, ...] = (Reference(flow="dense"),)
    arms: tuple[Arm, ...] = Field(min_length=1)
    limits: Limits = Limits()
    cluster: Cluster = Cluster()
    finals: Finals = Finals()
    serving: Serving | None = None
    screen: Screen | None = None
    knobs: dict[str, Any] = Field(default_factory=dict)
    written_for: float | None = Field(None, gt=0)
    repairs: int = Field(1, ge=0)
    proposer_patience: int = Field(5, ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> CampaignConfig:
        if self.random_weights and self.accuracy_model is None:
            raise ValueError(
                "random weights answer nothing: name an accuracy_model of the same kind of attention"
            )
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names):
            raise ValueError(f"arm names repeat: {', '.join(names)}")
        if taken := {"library", USER} & set(names):
            raise ValueError(f"an arm cannot be called {taken.pop()}: programs that no arm asked for are")
        if all(arm.control for arm in self.arms):
            raise ValueError("every arm is a control")
        return self


class ProposerConfig(Strict):
    """A proposer file.

    Attributes:
        spec: what `agents.registry.make_proposer` takes, e.g. `grammar` or `anthropic:MODEL`.
        options: keyword arguments for it.
    """

    description: str = ""
    spec: str
    options: dict[str, Any] = Field(default_factory=dict)


CAMPAIGNS = ConfigFolder("campaigns", "campaign", unknown="VS001", invalid="VS002")
PROPOSERS = ConfigFolder("proposers", "proposer", unknown="VS001", invalid="VS002")


def load_campaign(name: str) -> CampaignConfig:
    """A campaign by name or path.

    Raises:
        VortexError: `VS001` if there is none, `VS002` if it does not validate.
    """
    return CAMPAIGNS.load(name, CampaignConfig)


def load_proposer(name: str) -> ProposerConfig:
    """A proposer by file name, by path, or by specification (`grammar`, `openai:MODEL`, ...)."""
    if ":" in name and not name.endswith(".yaml"):
        return ProposerConfig(spec=name)
    try:
        return PROPOSERS.load(name, ProposerConfig)
    except VortexError as error:
        if error.code == UNKNOWN_NAME.code:
            hint = "; or a specification: anthropic:MODEL, openai:MODEL, openai:MODEL@http://host/v1"
            raise VortexError(error.code, error.message, error.remedy + hint) from None
        raise
