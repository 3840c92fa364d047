"""An lm-eval task as one of ours, offline, from local files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest

from evaluators.tasks.base import Question
from evaluators.tasks.lm_eval_task import LmEval, LmEvalParameters
from evaluators.testing import ByteTokenizer, TaskConformance
from vortex_core.errors import VortexError

pytest.importorskip("lm_eval")

TASK = {
    "task": "sums",
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_text": "Q: {{question}}\nA:",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 12},
    "filter_list": [
        {
            "name": "digits",
            "filter": [
                {"function": "regex", "regex_pattern": "(\\d+)"},
                {"function": "take_first"},
            ],
        }
    ],
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lm_eval")
    rows = [{"question": f"{n}+{n}=", "answer": str(2 * n)} for n in range(1, 31)]
    (path / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = {"data_files": {"test": str(path / "sums.jsonl")}, "cache_dir": str(path / "cache")}
    (path / "sums.yaml").write_text(json.dumps(TASK | {"dataset_kwargs": data}))  # JSON is YAML
    choices = {"output_type": "multiple_choice", "doc_to_choice": ["1", "2"], "task": "choices"}
    choices |= {"doc_to_target": 0, "dataset_kwargs": data, "filter_list": None, "metric_list": None}
    (path / "choices.yaml").write_text(
        json.dumps({k: v for k, v in (TASK | choices).items() if v is not None and k != "generation_kwargs"})
    )
    TestLmEval.given = {"context": 80, "lm_task": "sums", "include_path": str(path)}
    return path


class TestLmEval(TaskConformance):
    task = "lm_eval"
    given: ClassVar[dict[str, Any]]

    def tokenizer(self) -> ByteTokenizer:
        return ByteTokenizer()

    def test_lm_eval_filters_and_judges(self) -> None:
        question = self.build(self.tokenizer(), 0)[0]
        assert isinstance(question, Question)
        assert self.tokenizer().decode(list(question.prompt)).startswith("Q: ")
        assert (question.stops, question.max_new_tokens) == (("\n",), 12)
        assert question.score(f"it is {question.answer}!") == 1
        assert question.score(f"not {int(question.answer) + 1}") == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lm_task": "summs"}, "summs"),
        ({"lm_task": "choices"}, "multiple_choice, not generate_until"),
        ({"context": 3}, "the task's context is 3"),
    ],
)
def test_what_cannot_be_asked_is_refused(folder: Path, change: dict[str, Any], said: str) -> None:
    given = LmEvalParameters.model_validate(TestLmEval.given | change)
    with pytest.raises(VortexError, match=said) as caught:
        LmEval().item(ByteTokenizer(), given, 0, 0)
    assert caught.value.code in ("VV002", "VV014")


@pytest.mark.parametrize(
    ("change", "said"), [({"metric": "bleu"}, "no metric 'bleu'"), ({"filter": "x"}, "no filter 'x'")]
)
def test_what_it_does_not_measure_is_refused(folder: Path, change: dict[str, Any], said: str) -> None:
    given = LmEvalParameters.model_validate(TestLmEval.given | change)
    question = LmEval().item(ByteTokenizer(), given, 0, 0)
    with pytest.raises(VortexError, match=said):
        question.score("2")
