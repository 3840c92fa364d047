"""Evaluation plans: which items, contexts, gates and settings. One YAML file each, strictly validated."""

from __future__ import annotations

import hashlib
import json
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from vortex_core.configs import ConfigFolder, Strict

STAGE_NAMES = (
    "static", "compile", "parity", "modelled", "recall", "gate", "accuracy", "perplexity", "latency", "holdout",
    "serving",
)  # fmt: skip


_PLANS = ConfigFolder("evaluation", "evaluation plan", unknown="VV001", invalid="VV001")


class NeedleTask(Strict):
    """Retrieval items of one task at one context."""

    task: Literal["needle_single", "needle_multikey", "pair_recall"]
    context: PositiveInt = Field(description="prompt tokens, exact")
    items: PositiveInt
    distractors: int = Field(0, ge=0, description="needles of the same form with other keys")

    @model_validator(mode="after")
    def _distractors_fit(self) -> NeedleTask:
        if self.task != "pair_recall" and (self.task == "needle_multikey") != (self.distractors > 0):
            raise ValueError("needle_multikey has distractors, needle_single has none")
        return self

    @property
    def key(self) -> str:
        """Name of the row: task and context."""
        return f"{self.task}@{self.context}"


class AccuracyPlan(Strict):
    """Retrieval accuracy, paired with dense on the same items."""

    tasks: tuple[NeedleTask, ...] = Field(min_length=1)
    batch: PositiveInt = Field(description="prompts decoded together")
    gate_items: PositiveInt = Field(description="items of every task that the gate looks at first")
    gate_margin: float = Field(
        gt=0, lt=1, description="a candidate surely worse than dense by this much stops"
    )
    margin: float = Field(gt=0, lt=1, description="non-inferiority margin of the full run")
    level: float = Field(0.95, gt=0.5, lt=1, description="confidence of gates and intervals")

    @model_validator(mode="after")
    def _keys_differ(self) -> AccuracyPlan:
        keys = [task.key for task in self.tasks]
        if len(set(keys)) < len(keys):
            raise ValueError(f"tasks repeat: {', '.join(keys)}")
        return self


class PerplexityPlan(Strict):
    """Perplexity of held text decoded through the sparse path, or of the answers of pair recall."""

    text: Literal["held", "pairs"] = "held"
    distractors: int = Field(0, ge=0, description="other pairs in a text of pairs")
    context: PositiveInt
    continuation: PositiveInt = Field(description="tokens scored per passage")
    items: PositiveInt
    max_ratio: float = Field(gt=1, description="candidate over dense; above it the candidate stops")

    @model_validator(mode="after")
    def _one_answer(self) -> PerplexityPlan:
        if self.text == "pairs" and self.continuation != 1:
            raise ValueError("a text of pairs has one answer: continuation 1")
        if self.text == "held" and self.distractors:
            raise ValueError("distractors are for texts of pairs")
        return self


class RecallPlan(Strict):
    """Attention mass captured, on queries recorded while the dense model answered."""

    needle_items: int = Field(
        ge=0, description="items of the longest retrieval task whose queries are recorded"
    )
    perplexity_items: int = Field(ge=0, description="held passages whose queries are recorded")
    steps: PositiveInt = Field(description="decode steps recorded of each")
    min_recall: float = Field(ge=0, le=1, description="mean over layers, heads and prompts; below it stops")

    @model_validator(mode="after")
    def _some(self) -> RecallPlan:
        if self.needle_items + self.perplexity_items == 0:
            raise ValueError("recall needs at least one recorded prompt")
        return self


class LatencyPlan(Strict):
    """Decode latency, candidate and dense in turn in one process."""

    context: PositiveInt
    batch: PositiveInt
    steps: PositiveInt = Field(description="timed steps of each arm per round")
    warmup: int = Field(1, ge=0, description="steps of each arm per round that are not timed")
    rounds: PositiveInt = Field(description="times both arms are run, order alternating")


class ModelledPlan(Strict):
    """Throughput by the cost model; never a measurement."""

    gpus: tuple[str, ...] = Field(min_length=1, description="names in configs/hardware")
    model: str | None = Field(None, description="name in configs/models; None: the model evaluated")
    batch: PositiveInt
    length: PositiveInt = Field(description="tokens of context of each sequence")


class ParityPlan(Strict):
    """Random ragged batches on which a backend must select what the oracle selects."""

    pages: tuple[PositiveFloat, ...] = Field(min_length=1, description="length of each sequence, in pages")
    seeds: tuple[int, ...] = Field(min_length=1)
    tie_tolerance: float = Field(
        gt=0, description="scores closer than this share of a row's score range count as tied"
    )


class FreshPlan(Strict):
    """Items of fresh seeds (`items.FRESH_SEEDS`): elites measured again, and the sealed hold-out."""

    share: float = Field(gt=0, le=1, description="share of every task's items that are used")


class EngineSettings(Strict):
    """How the evaluator's engine is set up."""

    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    threads: PositiveInt | None = Field(None, description="CPU threads; None: torch's choice")
    keep_prefill_gib: float = Field(
        4, ge=0, description="disk for prefilled prompts, so that a restart need not compute them; 0: none"
    )


class EvaluationPlan(Strict):
    """Everything that decides a candidate's numbers, besides the model and the seed."""

    name: str
    seed: int = Field(0, description="of the items candidates are searched on")
    engine: EngineSettings = EngineSettings()
    parity: ParityPlan
    recall: RecallPlan
    accuracy: AccuracyPlan
    perplexity: PerplexityPlan
    latency: LatencyPlan
    modelled: ModelledPlan
    fresh: FreshPlan
    deadlines: dict[str, PositiveFloat] = Field(
        default_factory=dict, description="seconds a stage may take before the candidate counts as too slow"
    )

    @model_validator(mode="after")
    def _consistent(self) -> EvaluationPlan:
        longest = max(self.accuracy.tasks, key=lambda t: t.context)
        if self.recall.needle_items > longest.items:
            raise ValueError(
                f"recall.needle_items {self.recall.needle_items} of {longest.items} {longest.key} items"
            )
        if self.recall.perplexity_items > self.perplexity.items:
            raise ValueError(
                f"recall.perplexity_items {self.recall.perplexity_items} of {self.perplexity.items} passages"
            )
        if unknown := set(self.deadlines) - set(STAGE_NAMES):
            raise ValueError(
                f"deadlines of {', '.join(sorted(unknown))}: stages are {', '.join(STAGE_NAMES)}"
            )
        if any((task.task == "pair_recall") != self.in_pairs for task in self.accuracy.tasks):
            raise ValueError("pair_recall and perplexity of pairs go together, without other tasks")
        if self.recall.steps > self.perplexity.continuation:
            raise ValueError(f"recall.steps {self.recall.steps} of {self.perplexity.continuation} tokens")
        return self

    @property
    def in_pairs(self) -> bool:
        """Whether its items are written in the retrieval model's alphabet instead of English."""
        return self.perplexity.text == "pairs"

    @property
    def longest_context(self) -> int:
        """Tokens of the longest sequence any stage decodes, new tokens of perplexity and latency included."""
        return max(
            *(task.context for task in self.accuracy.tasks),
            self.perplexity.context + self.perplexity.continuation,
            self.latency.context + self.latency.steps + self.latency.warmup,
        )

    @property
    def digest(self) -> str:
        """12 hex digits; results of different plans are not comparable."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def list_plans() -> tuple[str, ...]:
    """Names of the plans that ship."""
    return _PLANS.names()


def load_plan(name_or_path: str) -> EvaluationPlan:
    """A plan by name (`configs/evaluation`) or from a YAML file.

    Raises:
        VortexError: `VV001` for an unknown name, an unreadable file or one that does not validate.
    """
    return _PLANS.load(name_or_path, EvaluationPlan)
