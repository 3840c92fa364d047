"""Evaluation plans: which items, contexts, gates and settings. One YAML file each, strictly validated."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    PrivateAttr,
    ValidationError,
    model_validator,
)

from evaluators.errors import no_section
from evaluators.stages.registry import SEARCH, STAGES
from evaluators.stages.settings import StageSettings
from evaluators.tasks.base import AnswerTask, LikelihoodTask, TaskParameters
from evaluators.tasks.registry import TASKS, AnyTask, get_task
from vortex_core.configs import ConfigFolder, Loaded, Strict, read_rest
from vortex_core.errors import VortexError

if TYPE_CHECKING:
    from evaluators.stages.base import Stage
    from vortex_core.specs import ModelSpec

_S = TypeVar("_S", bound=StageSettings)

_FEW = 0.2
"""Share of the items below which one of a task is enough."""
_STEPS = 4
"""Decode steps recorded there."""
_SLOWEST = 0.25
"""Share down to which stages are given more time: what hangs is to end."""
_PLANS = ConfigFolder("evaluation", "evaluation plan", unknown="VV001", invalid="VV008")


class AskedTask(BaseModel):
    """A task by name with how many items; its other keys are the task's own parameters, validated by the task."""

    model_config = ConfigDict(extra="allow", frozen=True)

    task: str = Field(description="name of a task")
    items: PositiveInt
    name: str = Field(
        "", description="of its rows in results, where one task is asked twice; empty: the task's"
    )

    _parameters: TaskParameters = PrivateAttr()

    @model_validator(mode="after")
    def _validated_by_the_task(self) -> AskedTask:
        try:
            schema = TASKS.get(self.task).parameters
        except VortexError as error:
            raise ValueError(f"task: {error.message} ({error.remedy})") from error
        self._parameters = read_rest(self, schema, f"task {self.task}")
        return self

    @property
    def parameters(self) -> TaskParameters:
        """The task's own parameters."""
        return self._parameters

    @property
    def generator(self) -> AnyTask:
        """The task."""
        return get_task(self.task)

    @property
    def context(self) -> int:
        """Tokens of the longest prompt."""
        return self._parameters.context

    @property
    def decoded(self) -> tuple[int, int]:
        """Answers drawn to each prompt, and the most tokens of each: `AnswerTask.decoded`."""
        assert isinstance(self.generator, AnswerTask)
        return self.generator.decoded(self._parameters)

    @property
    def key(self) -> str:
        """Name of the row: task and context."""
        return f"{self.name or self.task}@{self.context}"


class AccuracyPlan(Strict):
    """Accuracy of answers, paired with dense on the same items."""

    tasks: tuple[AskedTask, ...] = Field(min_length=1)
    batch: PositiveInt = Field(description="prompts decoded together")
    gate_items: PositiveInt = Field(description="items of every task that the gate looks at first")
    gate_margin: float = Field(
        gt=0, lt=1, description="a candidate surely worse than dense by this much stops"
    )
    margin: float = Field(gt=0, lt=1, description="non-inferiority margin of the full run")
    level: float = Field(0.95, gt=0.5, lt=1, description="confidence of gates and intervals")
    accept_early: bool = Field(
        True, description="while searching, stop asking as soon as a loss of the margin is excluded"
    )

    @model_validator(mode="after")
    def _keys_differ(self) -> AccuracyPlan:
        if silent := [task.task for task in self.tasks if not isinstance(task.generator, AnswerTask)]:
            raise ValueError(f"{', '.join(silent)} has no answers: it is for perplexity")
        keys = [task.key for task in self.tasks]
        if len(set(keys)) < len(keys):
            raise ValueError(f"tasks repeat: {', '.join(keys)} (give one of them a name)")
        return self

    def provable(self, share: float = 1.0) -> bool:
        """Whether identical answers to a share of the items would prove the margin."""
        from evaluators.sequential import items_to_prove  # scipy takes a second

        items = sum(math.ceil(task.items * share) for task in self.tasks)
        return items >= items_to_prove(self.margin, self.level)


class PerplexityPlan(AskedTask):
    """Perplexity of passages decoded through the sparse path."""

    task: str = "held_text"
    max_ratio: float = Field(gt=1, description="candidate over dense; above it the candidate stops")

    @model_validator(mode="after")
    def _is_of_passages(self) -> PerplexityPlan:
        if not isinstance(self.generator, LikelihoodTask):
            raise ValueError(f"{self.task} asks for answers: it is for accuracy")
        return self

    @property
    def continuation(self) -> int:
        """Tokens scored of each passage."""
        assert isinstance(self.generator, LikelihoodTask)
        return self.generator.continuation(self.parameters)


class FreshPlan(Strict):
    """Items of fresh seeds (`items.FRESH_SEEDS`): elites measured again, and the sealed hold-out."""

    share: float = Field(
        gt=0,
        le=8,
        description="items of a fresh seed, as a share of every task's; above 1: more than in the search",
    )


class EngineSettings(Strict):
    """How the evaluator's engine is set up."""

    cpu_dtype: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="on a CPU; auto: the checkpoint's own, fp32 where the CPU lacks bf16. A GPU computes in bf16",
    )
    threads: PositiveInt | None = Field(None, description="CPU threads; None: torch's choice")
    keep_prefill_gib: float = Field(
        4, ge=0, description="disk for prefilled prompts, so that a restart need not compute them; 0: none"
    )


class EvaluationPlan(BaseModel):
    """Everything that decides a candidate's numbers, besides the model and the seed.

    A key that is the name of a stage is that stage's section, validated by the stage's own settings.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str
    seed: int = Field(0, description="of the items candidates are searched on")
    target: Literal["embedded", "sglang"] = Field(
        "embedded", description="engine that is to serve what wins; what it would refuse stops in `static`"
    )
    reads: PositiveInt | None = Field(
        None,
        description="tokens of context that the plan's contexts are written for: for a model that reads less, all of "
        "them shrink in proportion",
    )
    engine: EngineSettings = EngineSettings()
    stages: tuple[str, ...] = Field(SEARCH, min_length=1, description="what candidates go through, in order")
    accuracy: AccuracyPlan
    perplexity: PerplexityPlan
    fresh: FreshPlan
    deadlines: dict[str, PositiveFloat] = Field(
        default_factory=dict, description="seconds a stage may take before the candidate counts as too slow"
    )

    @model_validator(mode="after")
    def _consistent(self) -> EvaluationPlan:
        known = STAGES.names()
        if unknown := set(self.deadlines) - set(known):
            raise ValueError(f"deadlines of {', '.join(sorted(unknown))}: stages are {', '.join(known)}")
        self._read_sections()
        for name, section in self.sections.items():
            try:
                section.check(self)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        return self

    def _read_sections(self) -> None:
        """Replace the raw sections of stages by their validated settings, in place."""
        extra = self.__pydantic_extra__
        assert extra is not None
        for name in extra.keys() - STAGES.names():
            near = difflib.get_close_matches(name, (*type(self).model_fields, *STAGES.names()), n=2)
            meant = f" (did you mean {' or '.join(near)}?)" if near else ""
            raise ValueError(f"{name}: neither a key of plans nor the name of a stage{meant}")
        for name in dict.fromkeys((*self.stages, *extra)):
            settings = _known_stage(name).settings
            if settings is None and name in extra:
                raise ValueError(f"{name}: this stage has no settings")
            if settings is None:
                continue
            try:
                extra[name] = settings.model_validate(extra.get(name, {}))
            except ValidationError as error:
                given = "" if name in extra else " (the plan has no such section)"
                wrong = (".".join([name, *map(str, e["loc"])]) + f": {e['msg']}" for e in error.errors())
                raise ValueError("; ".join(wrong) + given) from error

    @property
    def sections(self) -> dict[str, StageSettings]:
        """Settings of stages, by the stage's name."""
        assert self.__pydantic_extra__ is not None
        return self.__pydantic_extra__

    def section(self, stage: str, settings: type[_S]) -> _S:
        """The settings of a stage.

        Raises:
            VortexError: `VV008` if the plan has no such section.
        """
        found = self.sections.get(stage)
        if found is None:
            raise no_section(self.name, stage)
        assert isinstance(found, settings), f"{stage}: {type(found).__name__} is not {settings.__name__}"
        return found

    @property
    def lengths(self) -> frozenset[int]:
        """Contexts at which some stage looks at a candidate, besides those of the items."""
        return frozenset(n for section in self.sections.values() for n in section.lengths(self))

    @property
    def longest_context(self) -> int:
        """Tokens of the longest sequence that the model must read, new tokens included."""
        return max(
            *(task.context + task.decoded[1] for task in self.accuracy.tasks),
            self.perplexity.context + self.perplexity.continuation,
            *(section.longest(self) for section in self.sections.values()),
        )

    def for_model(self, model: ModelSpec) -> EvaluationPlan:
        """This plan with its contexts shrunk to what a model reads, in whole blocks of 128 tokens.

        A plan without `reads`, or for a model that reads as much, is returned as it is.
        """
        if self.reads is None or model.max_context >= self.reads:
            return self
        share = model.max_context / self.reads
        data = _shrunk(self.model_dump(mode="json"), share)
        return EvaluationPlan.model_validate(data | {"reads": model.max_context})

    def with_items(self, share: float) -> EvaluationPlan:
        """This plan with a share of every task's items, for a machine too slow for all of them, and more time for its
        stages. Two items of a task at least; of less than a fifth one of the first task alone, as many fresh ones, and
        a short recording: there is always something to compare."""
        if share == 1.0:
            return self
        data, few = self.model_dump(mode="json"), share < _FEW
        if few:
            data["accuracy"]["tasks"] = data["accuracy"]["tasks"][:1]
            data["fresh"]["share"] = min(data["fresh"]["share"], 1.0)
        for task in (*data["accuracy"]["tasks"], data["perplexity"]):
            least = 1 if few else 2
            task["items"] = min(task["items"], max(least, math.ceil(share * task["items"])))
        fewest = min(task["items"] for task in data["accuracy"]["tasks"])
        data["accuracy"]["gate_items"] = min(data["accuracy"]["gate_items"], fewest)
        passages = data["perplexity"]["items"]
        if "recall" in data:
            recall = data["recall"]
            recall["needle_items"] = min(recall["needle_items"], fewest)
            recall["perplexity_items"] = min(recall["perplexity_items"], passages)
        if "screen" in data:
            screen = data["screen"]
            screen["passages"] = min(screen["passages"], passages)
            if few:
                most = {"retrieval_items": 1, "steps": _STEPS, "at": 1}
                screen |= {name: min(screen[name], value) for name, value in most.items()}
        data["deadlines"] = {
            stage: seconds / max(share, _SLOWEST) for stage, seconds in data["deadlines"].items()
        }
        return EvaluationPlan.model_validate(data)

    @property
    def digest(self) -> str:
        """12 hex digits; results of different plans are not comparable."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def _shrunk(value: Any, share: float, key: str = "") -> Any:
    """Plain data with everything under `context` and `contexts` scaled."""
    if isinstance(value, dict):
        return {name: _shrunk(inner, share, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [_shrunk(inner, share, key) for inner in value]
    if key in ("context", "contexts") and isinstance(value, int):
        return max(128, int(value * share) // 128 * 128)
    return value


def _known_stage(name: str) -> type[Stage]:
    try:
        return STAGES.get(name)
    except VortexError as error:
        raise ValueError(f"stages: {error.message} ({error.remedy})") from error


def list_plans() -> tuple[str, ...]:
    """Names of the plans that ship."""
    return _PLANS.names()


def read_plan(name_or_path: str) -> Loaded[EvaluationPlan]:
    """A plan with the origin of every value; errors as `load_plan`."""
    return _PLANS.read(name_or_path, EvaluationPlan)


def load_plan(name_or_path: str) -> EvaluationPlan:
    """A plan by name (`configs/evaluation`) or from a YAML file.

    Raises:
        VortexError: `VV001` for an unknown name or an unreadable file, `VV008` for one that does not validate.
    """
    return _PLANS.load(name_or_path, EvaluationPlan)
