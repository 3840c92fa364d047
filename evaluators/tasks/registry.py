"""Tasks by name.

Another distribution adds one through an entry point of the group `vortex_search.tasks`, whose value is the
task's class (docs/extending/task.md).
"""

from __future__ import annotations

from functools import cache
from typing import Any

from evaluators.tasks.base import AnswerTask, LikelihoodTask
from vortex_core.registry import Registry

_HERE = "evaluators.tasks"

AnyTask = AnswerTask[Any] | LikelihoodTask[Any]

TASKS: Registry[type[AnyTask]] = Registry(
    "evaluation task",
    {
        "needle_single": f"{_HERE}.needle:NeedleSingle",
        "needle_multikey": f"{_HERE}.needle:NeedleMultikey",
        "needle_multivalue": f"{_HERE}.needle_many:NeedleMultivalue",
        "needle_multiquery": f"{_HERE}.needle_many:NeedleMultiquery",
        "variable_tracking": f"{_HERE}.variable_tracking:VariableTracking",
        "common_words": f"{_HERE}.common_words:CommonWords",
        "frequent_words": f"{_HERE}.frequent_words:FrequentWords",
        "qa_single": f"{_HERE}.question_answering:QaSingle",
        "qa_hop": f"{_HERE}.question_answering:QaHop",
        "pair_recall": f"{_HERE}.pairs:PairRecall",
        "key_hop": f"{_HERE}.skills:KeyHop",
        "key_count": f"{_HERE}.skills:KeyCount",
        "key_walk": f"{_HERE}.long_answers:KeyWalk",
        "key_dialogue": f"{_HERE}.long_answers:KeyDialogue",
        "word_chain": f"{_HERE}.word_chain:WordChain",
        "recital": f"{_HERE}.recital:Recital",
        "jsonl": f"{_HERE}.jsonl:Jsonl",
        "lm_eval": f"{_HERE}.lm_eval_task:LmEval",
        "held_text": f"{_HERE}.perplexity:HeldText",
        "pair_answers": f"{_HERE}.pairs:PairAnswers",
    },
    group="vortex_search.tasks",
    code="VV013",
)


@cache
def get_task(name: str) -> AnyTask:
    """This process's task of a name.

    Raises:
        VortexError: `VV013` for an unknown name.
    """
    return TASKS.get(name)()
