"""The bench: a resident engine with its evaluation prompts prefilled, and the dense answers to them."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from evaluators.answers import Answers, Place, PromptSet, answer_items
from evaluators.errors import no_room_for_items
from evaluators.identity import engine_identity, items_digest
from evaluators.plan import AskedTask, EvaluationPlan
from evaluators.prompt_store import PromptStore
from evaluators.recall import Recorder, Recording
from evaluators.reference import DenseReference
from evaluators.resident import Resident
from evaluators.screen import AttentionRecording, Screener
from evaluators.screen.record import record_attention, recording_key
from evaluators.stages.base import Deadline
from evaluators.stages.recall import RecallSettings
from evaluators.stages.screen import ScreenSettings
from evaluators.tasks.items import FRESH_SEEDS, ItemSet, build_items, check_context
from vortex_core.engine.kv.blocks import BLOCK_TOKENS, blocks_for
from vortex_core.ir.flow import Flow

if TYPE_CHECKING:  # the engine brings transformers along, which CPU stages do without
    from vortex_core.engine import DecodeResult, Engine, Prompt, Sampling


class Bench:
    """One engine and the prompts every candidate is measured on.

    The prompts of one search seed and of one fresh seed (see `items.FRESH_SEEDS`) are kept at a time, where the pool
    has room for both.

    Args:
        engine: with room for the prompts (see `capacity`).
        weights: `identity.model_digest` of what the engine loaded.
        store: where prefilled prompts and dense answers are kept between processes, if anywhere.
    """

    def __init__(
        self, engine: Engine | Resident, plan: EvaluationPlan, weights: str, store: PromptStore | None = None
    ) -> None:
        self.resident = engine if isinstance(engine, Resident) else Resident(engine)
        self.engine = self.resident.engine
        check_context(plan, self.engine.spec)
        self.plan = plan
        self.identity = engine_identity(self.engine, weights)
        self.store = store
        self._items: dict[int, ItemSet] = {}
        self._sets: dict[int, PromptSet] = {}
        self._references: dict[int, DenseReference] = {}
        self._recordings: dict[int, Recording] = {}
        self._attention: dict[int, AttentionRecording] = {}
        self._screeners: dict[int, Screener] = {}
        self._answers: Answers | None = None

    @property
    def swap_seconds(self) -> float:
        """What loading the present candidate took."""
        return self.resident.swap_seconds

    # ---- prompts

    def prompts(self, seed: int) -> PromptSet:
        """The prefilled prompts of a seed; slow the first time.

        Raises:
            VortexError: `VV002` for items that cannot be built, `VE010` where the engine has no room.
        """
        if seed not in self._sets:
            items = self._make_room(seed)
            began = time.perf_counter()
            needles = {
                (key, i): self._prefill(item.prompt)
                for key, found in items.needles.items()
                for i, item in enumerate(found)
            }
            passages = [self._prefill(item.prompt) for item in items.passages]
            self._sets[seed] = PromptSet(items, needles, passages, time.perf_counter() - began)
        return self._sets[seed]

    def items(self, seed: int) -> ItemSet:
        """What a seed asks; nothing is prefilled."""
        if seed not in self._items:
            self._items = {s: self._items[s] for s in self._sets}  # those in use, and no others
            self._items[seed] = build_items(self.plan, self.engine.tokenizer, seed)
        return self._items[seed]

    def _make_room(self, seed: int) -> ItemSet:
        """Release the prompts of another seed of the same kind, and all others where the pool is short."""
        for other in [s for s in self._sets if (s >= FRESH_SEEDS) == (seed >= FRESH_SEEDS)]:
            self._release(other)
        items, blocks = self.items(seed), self.engine.cache.blocks
        needed = room_of(items)
        for other in list(self._sets):
            if needed > blocks.available:
                self._release(other)
        if needed > blocks.available:
            raise no_room_for_items(
                needed * BLOCK_TOKENS, blocks.available * BLOCK_TOKENS, str(self.engine.device)
            )
        return items

    def _prefill(self, token_ids: Sequence[int]) -> Prompt:
        if self.store is None or not self.store.keeps_prompts:
            return self.engine.prefill(token_ids)
        return self.store.prefill(self.engine, token_ids)

    def _release(self, seed: int) -> None:
        gone = self._sets.pop(seed)
        self._recordings.pop(seed, None)
        self._attention.pop(seed, None)
        self._screeners.pop(seed, None)
        for prompt in [*gone.needles.values(), *gone.passages]:
            self.engine.release(prompt)

    @property
    def held_tokens(self) -> int:
        """Tokens of KV that the prompts of the search take in the pool."""
        return set_blocks(self.plan, 1.0) * BLOCK_TOKENS

    def free(self, blocks: int, keep: int) -> None:
        """Release the prompts of other seeds than `keep` until the pool has `blocks` free ones, or nothing is left."""
        for other in [seed for seed in self._sets if seed != keep]:
            if blocks <= self.engine.cache.blocks.available:
                break
            self._release(other)

    # ---- running

    def decode(
        self,
        flow: Flow | None,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int,
        forced: Sequence[Sequence[int | None]] | None = None,
        stop_ids: Sequence[int] = (),
        sampling: Sampling | Sequence[Sampling] | None = None,
        recorder: Recorder | None = None,
    ) -> DecodeResult:
        """See `Resident.decode`.

        Raises:
            VortexError: `VV110` if the engine reports another program.
        """
        return self.resident.decode(
            flow, prompts, max_new_tokens=max_new_tokens, forced=forced,
            stop_ids=stop_ids, sampling=sampling, recorder=recorder,
        )  # fmt: skip

    def answer(self, flow: Flow | None, seed: int, places: Sequence[Place], deadline: Deadline) -> Answers:
        """Answer retrieval items; what the same flow has answered already is not asked again."""
        key = "dense" if flow is None else flow.key
        if self._answers is None or (self._answers.key, self._answers.seed) != (key, seed):
            self._answers = Answers(key, seed)
        answers = self._answers
        prompts = self.prompts(seed)
        todo = [place for place in places if place not in answers.scores]
        self.resident.load(flow)
        for group in prompts.items.batches(todo, self.plan.accuracy.batch):
            answer_items(self, flow, group, prompts, answers, deadline)
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
            VortexError: `VV005` if they were measured on other items, weights, engine, device kind or versions.
        """
        reference.check(self.identity, self._asked(reference.seed), self.items(reference.seed))
        self._references[reference.seed] = reference

    def _asked(self, seed: int) -> str:
        return items_digest(self.items(seed))

    def reference(self, seed: int) -> DenseReference:
        """Dense results of a seed, measured where they are not known."""
        if seed in self._references:
            return self._references[seed]
        name = f"dense-{self._asked(seed)}"
        stored = self.store.read_json(name) if self.store else None
        if stored is not None:
            self.adopt(DenseReference.from_json(stored | {"seed": seed}))
            return self._references[seed]
        prompts = self.prompts(seed)
        began = time.perf_counter()
        places = prompts.items.in_order(self.plan.accuracy.gate_items)
        answers = self.answer(None, seed, places, Deadline("reference", None))
        needles = prompts.items.needles
        found = DenseReference(
            identity=self.identity,
            items=self._asked(seed),
            model=self.engine.spec.name,
            seed=seed,
            scores={k: [answers.scores[k, i] for i in range(len(v))] for k, v in needles.items()},
            texts={k: [answers.texts[k, i] for i in range(len(v))] for k, v in needles.items()},
            passed={k: [answers.passed[k, i] for i in range(len(v))] for k, v in needles.items()},
            tokens={k: [answers.tokens[k, i] for i in range(len(v))] for k, v in needles.items()},
            logprobs=self.continuation(None, seed).logprobs,
            prefill_seconds=prompts.prefill_seconds,
            answer_seconds=time.perf_counter() - began,
        )
        self._references[seed] = found
        if self.store is not None:
            self.store.write_json(name, found.to_json())
        return found

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

    # ---- the screen

    def screened(self, seed: int) -> list[tuple[str, Place | int]]:
        """What the screen records: `(task, place)` of retrieval items, longest tasks in turn, then of passages."""
        plan, items = self.plan.section("screen", ScreenSettings), self.items(seed)
        tasks = sorted(self.plan.accuracy.tasks, key=lambda task: -task.context)
        tasks = [t for t in tasks if t.context <= plan.most_tokens] or tasks[-1:]
        most = max(len(items.needles[t.key]) for t in tasks)
        in_turn = [(t.task, (t.key, i)) for i in range(most) for t in tasks if i < len(items.needles[t.key])]
        passages = [(self.plan.perplexity.task, i) for i in range(min(plan.passages, len(items.passages)))]
        return [*in_turn[: plan.retrieval_items], *passages]

    def attention(self, seed: int) -> AttentionRecording:
        """Recorded attention of a seed's prompts: from disk where it is kept, else recorded now.

        Raises:
            VortexError: `VV008` where the plan has no section `screen`.
        """
        if seed not in self._attention:
            path = self.attention_file(seed)
            if path is not None and path.exists():
                self._attention[seed] = AttentionRecording.load(path)
            else:
                self._attention[seed] = self._record(seed)
                if path is not None:
                    self._attention[seed].save(path)
        return self._attention[seed]

    def attention_file(self, seed: int) -> Path | None:
        """Where a seed's recording is kept; None where nothing is kept between processes."""
        if self.store is None:
            return None
        return self.store.folder / f"attention-{self._attention_key(seed)}.safetensors"

    def screener(self, seed: int) -> Screener:
        """The seed's screener."""
        if seed not in self._screeners:
            plan = self.plan.section("screen", ScreenSettings)
            recording = self.attention(seed).to(self.engine.device)
            self._screeners[seed] = Screener(recording, budgets=plan.budgets, layers=plan.layers)
        return self._screeners[seed]

    def _attention_key(self, seed: int) -> str:
        plan, items = self.plan.section("screen", ScreenSettings), self.items(seed)
        prompts = [
            items.passages[place].prompt
            if isinstance(place, int)
            else items.needles[place[0]][place[1]].prompt
            for _, place in self.screened(seed)
        ]
        return recording_key(self.identity, prompts, plan.steps, plan.at)

    def _record(self, seed: int) -> AttentionRecording:
        plan, prompts, screened = (
            self.plan.section("screen", ScreenSettings),
            self.prompts(seed),
            self.screened(seed),
        )
        chosen = [
            prompts.passages[place] if isinstance(place, int) else prompts.needles[place]
            for _, place in screened
        ]
        self.resident.load(None)
        return record_attention(
            self.engine, chosen, [kind for kind, _ in screened], steps=plan.steps, at=plan.at,
            key=self._attention_key(seed), scale=attention_scale(self.engine),
        )  # fmt: skip


def attention_scale(engine: Engine) -> float:
    """What the model multiplies q·k by."""
    return next(
        float(m.scaling) for m in engine.model.modules() if hasattr(m, "scaling") and hasattr(m, "layer_idx")
    )


def room_of(items: ItemSet) -> int:
    """Blocks that a set's prompts take, with two more for what each decodes."""
    prompts = [i.prompt for found in items.needles.values() for i in found]
    prompts += [i.prompt for i in items.passages]
    return sum(blocks_for(len(p)) + 2 for p in prompts)


def set_blocks(plan: EvaluationPlan, share: float) -> int:
    """Blocks of a seed's prompts, where it asks a share of the items."""
    tasks = sum(math.ceil(task.items * share) * blocks_for(task.context) for task in plan.accuracy.tasks)
    return tasks + math.ceil(plan.perplexity.items * share) * blocks_for(plan.perplexity.context)


def capacity(plan: EvaluationPlan, *, generous: bool = False, answers: bool = True) -> int:
    """Tokens of KV pool for the plan's prompts of a search seed and of a fresh one, and for what decodes from them.

    Args:
        generous: room for every sequence that stages would like to decode together, and not only for those they need.
        answers: False for an engine that is timed and never asked.
    """
    own = [
        (d.sequences if generous else d.required, d.context, d.new)
        for section in plan.sections.values()
        if (d := section.decodes(plan)) is not None
    ]
    prompts = max((n * blocks_for(context) for n, context, _ in own), default=0)
    copies = max((n * (blocks_for(context + new) + 2) for n, context, new in own), default=0)
    if not answers:
        return (prompts + copies + 8) * BLOCK_TOKENS
    # A decode with request-local state copies its prompts; every sequence needs room for its new tokens.
    rows = sorted((row for task in plan.accuracy.tasks for row in _rows(task)), reverse=True)
    widest = max(
        sum(rows[: plan.accuracy.batch]),
        plan.perplexity.items * (blocks_for(plan.perplexity.context + plan.perplexity.continuation) + 2),
        copies,
    )
    blocks = set_blocks(plan, 1.0) + set_blocks(plan, plan.fresh.share)
    return (blocks + prompts + widest + 8) * BLOCK_TOKENS


def _rows(task: AskedTask) -> list[int]:
    """Blocks of every sequence that decodes the answers of a task, where each copies its prompt."""
    samples, new = task.decoded
    return [blocks_for(task.context + max(new, BLOCK_TOKENS)) + 1] * (task.items * samples)
