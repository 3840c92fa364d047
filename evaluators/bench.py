"""The bench: a resident engine with its evaluation prompts prefilled, and the dense answers to them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from evaluators.errors import not_what_ran
from evaluators.plan import EvaluationPlan
from evaluators.prompt_store import PromptStore
from evaluators.recall import Recorder, Recording
from evaluators.reference import DenseReference
from evaluators.stages.base import Deadline
from evaluators.stages.recall import RecallSettings
from evaluators.tasks.items import FRESH_SEEDS, ItemSet, build_items, check_context, timing_item
from evaluators.tasks.tokens import encode
from vortex_core.ir.flow import Flow

if TYPE_CHECKING:  # the engine brings transformers along, which CPU stages do without
    from vortex_core.engine import DecodeResult, Engine, Prompt

Place = tuple[str, int]


@dataclass
class PromptSet:
    """The prefilled prompts of one seed."""

    items: ItemSet
    needles: dict[Place, Prompt]
    passages: list[Prompt]
    prefill_seconds: float


@dataclass
class Answers:
    """What one flow has answered so far on one seed's retrieval items."""

    key: str
    seed: int
    scores: dict[Place, float] = field(default_factory=dict)
    texts: dict[Place, str] = field(default_factory=dict)
    density: list[float] = field(default_factory=list)


class Bench:
    """One engine and the prompts every candidate is measured on.

    The prompts of one search seed and of one fresh seed (see `items.FRESH_SEEDS`) are kept at a time.

    Args:
        engine: with room for the prompts (see `capacity`).
        store: where prefilled prompts and dense answers are kept between processes, if anywhere.
    """

    def __init__(self, engine: Engine, plan: EvaluationPlan, store: PromptStore | None = None) -> None:
        check_context(plan, engine.spec)
        self.engine = engine
        self.plan = plan
        self.store = store
        self._sets: dict[int, PromptSet] = {}
        self._references: dict[int, DenseReference] = {}
        self._recordings: dict[int, Recording] = {}
        self._answers: Answers | None = None
        self._loaded = ""
        self.swap_seconds = 0.0
        stops = {
            engine.tokenizer.eos_token_id,
            *encode(engine.tokenizer, "."),
            *encode(engine.tokenizer, "\n"),
        }
        self.stop_ids = tuple(sorted(i for i in stops if i is not None))

    # ---- prompts

    def prompts(self, seed: int) -> PromptSet:
        """The prefilled prompts of a seed; slow the first time.

        Raises:
            VortexError: `VV002` for items that cannot be built, `VE010` where the engine has no room.
        """
        if seed not in self._sets:
            for other in [s for s in self._sets if (s >= FRESH_SEEDS) == (seed >= FRESH_SEEDS)]:
                self._release(other)
            items = build_items(self.plan, self.engine.tokenizer, seed)
            began = time.perf_counter()
            needles = {
                (key, i): self._prefill(item.prompt)
                for key, found in items.needles.items()
                for i, item in enumerate(found)
            }
            passages = [self._prefill(item.prompt) for item in items.passages]
            self._sets[seed] = PromptSet(items, needles, passages, time.perf_counter() - began)
        return self._sets[seed]

    def _prefill(self, token_ids: Sequence[int]) -> Prompt:
        if self.store is None:
            return self.engine.prefill(token_ids)
        return self.store.prefill(self.engine, token_ids)

    def _release(self, seed: int) -> None:
        gone = self._sets.pop(seed)
        self._recordings.pop(seed, None)
        for prompt in [*gone.needles.values(), *gone.passages]:
            self.engine.release(prompt)

    @contextmanager
    def long_prompts(self, context: int, count: int, seed: int) -> Iterator[list[Prompt]]:
        """Prompts of an exact length for timing: retrieval items, the seed's own where it has that length."""
        items = [timing_item(self.plan, self.engine.tokenizer, context, seed, i) for i in range(count)]
        prompts = [self._prefill(item.prompt) for item in items]
        try:
            yield prompts
        finally:
            for prompt in prompts:
                self.engine.release(prompt)

    # ---- running

    def load(self, flow: Flow | None) -> None:
        """Make the engine run a candidate, or dense attention."""
        key = "dense" if flow is None else flow.key
        if key == self._loaded:
            return
        self._loaded = ""
        if flow is None:
            report = self.engine.load_flow(None)
        else:
            report = self.engine.load_flow(flow.program, flow.knobs)
        self._loaded = key
        self.swap_seconds = report.seconds

    def forget_loaded(self) -> None:
        """Load the next flow anew, whatever the engine seems to hold."""
        self._loaded = ""

    @contextmanager
    def flow_aside(self) -> Iterator[None]:
        """Run dense for a while and take the loaded flow back, its page states kept.

        No prompt may be prefilled meanwhile: its states would be missing. (Decodes are fine: a flow forgets
        the blocks that it allocates itself.)
        """
        engine, flow, loaded = self.engine, self.engine.flow, self._loaded
        engine.flow, self._loaded = None, "dense"
        try:
            yield
        finally:
            engine.flow, self._loaded = flow, loaded

    def decode(
        self,
        flow: Flow | None,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int,
        forced: Sequence[Sequence[int]] | None = None,
        stop: bool = False,
        recorder: Recorder | None = None,
    ) -> DecodeResult:
        """Decode with a candidate (None: dense) and check that it was what ran.

        Raises:
            VortexError: `VV110` if the engine reports another program.
        """
        self.load(flow)
        result = self.engine.decode(
            prompts,
            max_new_tokens=max_new_tokens,
            forced=forced,
            stop_ids=self.stop_ids if stop else (),
            recorder=recorder,
        )
        wanted = "dense" if flow is None else flow.program.ir_hash
        if result.ir_hash != wanted:
            raise not_what_ran(wanted, result.ir_hash)
        return result

    def answer(self, flow: Flow | None, seed: int, places: Sequence[Place], deadline: Deadline) -> Answers:
        """Answer retrieval items; what the same flow has answered already is not asked again."""
        key = "dense" if flow is None else flow.key
        if self._answers is None or (self._answers.key, self._answers.seed) != (key, seed):
            self._answers = Answers(key, seed)
        answers = self._answers
        prompts = self.prompts(seed)
        todo = [place for place in places if place not in answers.scores]
        for batch in prompts.items.batches(todo, self.plan.accuracy.batch):
            deadline.check(f"{len(answers.scores)} items answered")
            items = [prompts.items.needles[k][i] for k, i in batch]
            result = self.decode(
                flow,
                [prompts.needles[place] for place in batch],
                max_new_tokens=max(item.max_new_tokens for item in items),
                stop=True,
            )
            answers.density.append(result.density)
            for place, item, tokens in zip(batch, items, result.tokens, strict=True):
                text = self.engine.tokenizer.decode(tokens, skip_special_tokens=True)
                answers.texts[place] = text
                answers.scores[place] = item.score(text)
        return answers

    def continuation(self, flow: Flow | None, seed: int) -> DecodeResult:
        """Force the true continuations of a seed's passages through the decode path."""
        prompts = self.prompts(seed)
        return self.decode(
            flow,
            prompts.passages,
            max_new_tokens=self.plan.perplexity.continuation,
            forced=[item.continuation for item in prompts.items.passages],
        )

    # ---- dense

    def adopt(self, reference: DenseReference) -> None:
        """Take dense results measured earlier.

        Raises:
            VortexError: `VV005` if they belong to another plan, model or set of items.
        """
        items = build_items(self.plan, self.engine.tokenizer, reference.seed)
        reference.check(self.plan.digest, self.engine.spec.name, items)
        self._references[reference.seed] = reference

    def reference(self, seed: int) -> DenseReference:
        """Dense results of a seed, measured where they are not known."""
        name = f"dense-{self.plan.digest}-{seed}"
        stored = self.store.read_json(name) if self.store and seed not in self._references else None
        if stored is not None:
            self.adopt(DenseReference.from_json(stored))
        if seed not in self._references:
            prompts = self.prompts(seed)
            began = time.perf_counter()
            places = prompts.items.in_order(self.plan.accuracy.gate_items)
            answers = self.answer(None, seed, places, Deadline("reference", None))
            needles = prompts.items.needles
            self._references[seed] = DenseReference(
                plan=self.plan.digest,
                model=self.engine.spec.name,
                seed=seed,
                scores={k: [answers.scores[k, i] for i in range(len(v))] for k, v in needles.items()},
                texts={k: [answers.texts[k, i] for i in range(len(v))] for k, v in needles.items()},
                logprobs=self.continuation(None, seed).logprobs,
                prefill_seconds=prompts.prefill_seconds,
                answer_seconds=time.perf_counter() - began,
            )
            if self.store is not None:
                self.store.write_json(name, self._references[seed].to_json())
        return self._references[seed]

    def recording(self, seed: int) -> Recording:
        """Dense attention of some of a seed's prompts; recorded the first time."""
        if seed not in self._recordings:
            plan, prompts = self.plan.section("recall", RecallSettings), self.prompts(seed)
            longest = max(self.plan.accuracy.tasks, key=lambda task: task.context)
            available = len(prompts.items.needles[longest.key])  # fresh seeds have fewer
            chosen = [prompts.needles[longest.key, i] for i in range(min(plan.needle_items, available))]
            chosen += prompts.passages[: plan.perplexity_items]
            recorder = Recorder(self.engine.geometry, plan.steps, attention_scale(self.engine))
            # Greedy continuations, so that needle queries are those of the answer.
            self.decode(None, chosen, max_new_tokens=plan.steps, recorder=recorder)
            self._recordings[seed] = recorder.finish()
        return self._recordings[seed]


def attention_scale(engine: Engine) -> float:
    """What the model multiplies q·k by."""
    return next(
        float(m.scaling) for m in engine.model.modules() if hasattr(m, "scaling") and hasattr(m, "layer_idx")
    )


def capacity(plan: EvaluationPlan) -> int:
    """Tokens of KV pool that the plan's prompts and decodes need, in whole blocks."""
    block = 128
    task_blocks = sum(task.items * -(-task.context // block) for task in plan.accuracy.tasks)
    passage_blocks = plan.perplexity.items * -(-plan.perplexity.context // block)
    blocks = (task_blocks + passage_blocks) * (1 + plan.fresh.share)
    own = [d for section in plan.sections.values() if (d := section.decodes()) is not None]
    prompts = max((d.sequences * -(-d.context // block) for d in own), default=0)
    # A decode with request-local state copies its prompts; every sequence needs room for its new tokens.
    widest = max(
        plan.accuracy.batch * (max(t.context for t in plan.accuracy.tasks) // block + 2),
        plan.perplexity.items * ((plan.perplexity.context + plan.perplexity.continuation) // block + 2),
        *(d.sequences * ((d.context + d.new) // block + 2) for d in own),
    )
    return int(blocks + prompts + widest + 8) * block
