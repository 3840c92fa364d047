"""Any task of lm-eval that generates text, asked item by item and paired with dense like our own.

    - {task: lm_eval, name: gsm8k, lm_task: gsm8k, context: 1536, items: 40, shots: 4}

lm-eval makes the prompt, filters the answer and judges it. Tasks that compare likelihoods of choices are not made
of answers: run them through `lm_eval_adapter.EngineLM`, which answers every kind of request.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from pydantic import Field, PositiveInt

from evaluators.errors import lm_eval_refused, row_too_long, too_few_rows
from evaluators.tasks.base import AnswerTask, Question, SampledParameters, draw_row
from evaluators.tasks.tokens import Tokenizer, encode, frame

_TOKENS = 256  # generated where neither the plan nor the task says


class LmEvalParameters(SampledParameters):
    """See the module."""

    lm_task: str = Field(description="lm-eval's name of the task")
    include_path: str | None = Field(None, description="folder of task files of one's own")
    shots: int | None = Field(None, ge=0, description="worked examples in the prompt; None: as the task says")
    chat: bool = Field(False, description="whether the prompt is a turn in the model's chat template")
    metric: str = Field("exact_match", description="which of the task's metrics; 1 is right, 0 wrong")
    filter: str = Field("", description="which of the task's filters; empty: its first")
    max_new_tokens: PositiveInt | None = None


class LmEval(AnswerTask[LmEvalParameters]):
    """See the module. Seeds of search, fresh and hold-out items share no document."""

    name = "lm_eval"
    parameters = LmEvalParameters
    exact = False

    def decoded(self, given: LmEvalParameters) -> tuple[int, int]:
        """See `AnswerTask`."""
        return given.samples, given.max_new_tokens or _TOKENS

    def item(self, tokenizer: Tokenizer, given: LmEvalParameters, seed: int, index: int) -> Question:
        """See `AnswerTask`.

        Raises:
            VortexError: `VV014` if lm-eval is not installed or cannot be asked so; `VV002` if there are too few
                documents or a prompt is longer than `context`.
        """
        task, documents = _load(given.lm_task, given.include_path)
        at = draw_row(len(documents), seed, index)
        if at is None:
            raise too_few_rows(f"lm-eval task {given.lm_task}", len(documents), index + 1)
        document = documents[at]
        shots = int(task.config.num_fewshot or 0) if given.shots is None else given.shots
        text = str(task.fewshot_context(document, num_fewshot=shots))
        if given.chat:
            head, tail = frame(tokenizer, "", text, "")
            prompt = (*head, *tail)
        else:
            start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
            prompt = (*start, *encode(tokenizer, text))
        if len(prompt) > given.context:
            raise row_too_long(f"lm-eval task {given.lm_task}", at + 1, len(prompt), given.context)
        arguments = dict(task.config.generation_kwargs or {})
        until = arguments.get("until") or []
        return Question(
            index=index,
            prompt=prompt,
            answers=(str(task.doc_to_target(document)),),
            metric=lambda said, _: _judge(task, document, text, given, said),
            max_new_tokens=given.max_new_tokens or int(arguments.get("max_gen_toks", _TOKENS)),
            stops=(until,) if isinstance(until, str) else tuple(until),
            about={"document": at},
            samples=given.samples,
            temperature=given.temperature,
            top_p=given.top_p,
        )


def _judge(task: Any, document: Any, prompt: str, given: LmEvalParameters, said: str) -> bool:
    from lm_eval.api.instance import Instance

    instance = Instance("generate_until", document, (prompt, {}), 0, resps=[said])
    filters = {ensemble.name: ensemble for ensemble in task._filters}
    chosen = given.filter or next(iter(filters))
    if chosen not in filters:
        raise lm_eval_refused(given.lm_task, f"it has no filter {chosen!r}, but {', '.join(filters)}")
    filters[chosen].apply([instance])
    found = task.process_results(document, [instance.filtered_resps[chosen]])
    if given.metric not in found:
        raise lm_eval_refused(given.lm_task, f"it has no metric {given.metric!r}, but {', '.join(found)}")
    value = float(found[given.metric])
    if value not in (0.0, 1.0):
        raise lm_eval_refused(
            given.lm_task, f"metric {given.metric} gives {value:g}, neither right nor wrong"
        )
    return value == 1.0


@lru_cache(maxsize=8)
def _load(name: str, include_path: str | None) -> tuple[Any, list[Any]]:
    """The task and its documents."""
    try:
        from lm_eval.tasks import TaskManager, get_task_dict
    except ImportError as error:
        raise lm_eval_refused(name, f"lm-eval cannot be imported: {error}") from error
    manager = TaskManager(include_path=include_path, include_defaults=include_path is None)
    try:
        task = get_task_dict([name], manager)[name]
    except (KeyError, ValueError, OSError) as error:
        raise lm_eval_refused(name, f"{type(error).__name__}: {error}") from error
    if getattr(task, "OUTPUT_TYPE", None) != "generate_until":
        kind = getattr(task, "OUTPUT_TYPE", "a group of tasks")
        raise lm_eval_refused(name, f"its requests are {kind}, not generate_until")
    return task, list(task.eval_docs)
