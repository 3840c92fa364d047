"""Questions about documents, in the manner of RULER (arXiv 2404.06654): one document answers, or two together do.

`qa_single` and `qa_hop` are its two question-answering tasks. By default documents are made up; `source: official`
takes RULER's own, SQuAD's for one document and HotpotQA's for two. A prompt is full of documents: the ones needed
stand at random places, at least one of them anywhere, and the last document taken is cut so that the size is exact.
"""

from __future__ import annotations

import random
from functools import lru_cache
from typing import ClassVar, Literal

from pydantic import Field

from evaluators.errors import no_room, too_few_documents, too_few_rows
from evaluators.tasks.as_ruler import RulerParameters, any_said, as_ruler
from evaluators.tasks.base import AnswerTask, Question, draw_row
from evaluators.tasks.haystack import golden_depth
from evaluators.tasks.qa_documents import DocumentQuestion, made_up
from evaluators.tasks.qa_official import PACKAGE, corpus
from evaluators.tasks.tokens import Tokenizer, encode, frame

_BEFORE = "Answer the question with the help of the documents. Say the answer and nothing else.\n\n"
_AFTER = "Answer the question with the help of the documents. Say the answer and nothing else.\n\nQuestion: {query}"
_ANSWER = "Answer:"
_SLACK = 8  # tokens of an answer beside its longest wording
_RULER_TOKENS = 32


class DocumentsParameters(RulerParameters):
    """See the module."""

    source: Literal["made_up", "official"] = Field(
        "made_up", description="of the documents; official: RULER's own, with the extra `ruler` installed"
    )


class _Documents(AnswerTask[DocumentsParameters]):
    """What both tasks share."""

    parameters = DocumentsParameters
    hops: ClassVar[int]
    official: ClassVar[Literal["squad", "hotpotqa"]]

    def item(self, tokenizer: Tokenizer, given: DocumentsParameters, seed: int, index: int) -> Question:
        """See `AnswerTask`. Seeds of search, of fresh measurements and of hold-outs share no official question.

        Raises:
            VortexError: also `VV017` where the official data are not installed.
        """
        rng = random.Random(f"{self.name}:{given.source}:{given.context}:{seed}:{index}")
        if given.source == "made_up":
            asked = made_up(rng, self.hops)
        else:
            rows = corpus(self.official)
            at = draw_row(len(rows.rows), seed, index)
            if at is None:
                raise too_few_rows(PACKAGE, len(rows.rows), index + 1)
            asked = rows.question(at, rng)
        head, tail = frame(tokenizer, _BEFORE, _AFTER.format(query=asked.query), _ANSWER)
        room = given.context - len(head) - len(tail)
        depth = golden_depth(self.name, given.context, seed, index)
        body, places = _laid_out(tokenizer, asked, room, depth, rng, self.name, given.context)
        question = Question(
            index=index,
            prompt=(*head, *body, *tail),
            answers=asked.answers,
            metric="any",
            max_new_tokens=max(len(encode(tokenizer, f" {answer}.")) for answer in asked.answers) + _SLACK,
            stops=("\n",),
            about={
                "question": asked.query,
                "needle_tokens": [[len(head) + start, len(head) + end] for start, end in places],
            },
        )
        return as_ruler(question, _RULER_TOKENS, any_said) if given.as_ruler else question


class QaSingle(_Documents):
    """One document answers."""

    name = "qa_single"
    hops = 1
    official = "squad"


class QaHop(_Documents):
    """Two documents answer together."""

    name = "qa_hop"
    hops = 2
    official = "hotpotqa"


def _laid_out(
    tokenizer: Tokenizer,
    asked: DocumentQuestion,
    room: int,
    depth: float,
    rng: random.Random,
    task: str,
    context: int,
) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids of numbered documents that take exactly `room` tokens, and where the needed ones lie in them.

    Raises:
        VortexError: `VV002` if the needed documents do not fit with as much beside them, or documents run out.
    """
    end = list(_encoded(tokenizer, "\n\n"))
    needed = [_encoded(tokenizer, text) for text in asked.documents]
    left = room - sum(len(_heading(tokenizer, n + 1)) + len(ids) + len(end) for n, ids in enumerate(needed))
    if left < max(map(len, needed)):
        raise no_room(context, room, task)
    others: list[tuple[int, ...]] = []
    for text in asked.others:
        others.append(_encoded(tokenizer, text))
        # Headings count documents wherever each comes to stand.
        left -= len(_heading(tokenizer, len(needed) + len(others))) + len(others[-1]) + len(end)
        if left <= 0:
            break
    else:
        raise too_few_documents(task, context, len(asked.documents) + len(others))
    for i in reversed(range(len(others))):  # the one taken last is cut, and is never gone
        kept = max(1, len(others[i]) + left)
        left += len(others[i]) - kept
        others[i] = others[i][:kept]
        if left == 0:
            break
    texts = [*needed, *others]
    order = list(range(len(needed), len(texts)))
    rng.shuffle(order)
    for i in range(len(needed)):
        order.insert(round(depth * len(order)) if i == 0 else rng.randrange(len(order) + 1), i)
    ids: list[int] = []
    places = {}
    for number, i in enumerate(order, 1):
        ids += _heading(tokenizer, number)
        places[i] = (len(ids), len(ids) + len(texts[i]))
        ids += [*texts[i], *end]
    return ids, [places[i] for i in range(len(needed))]


def _heading(tokenizer: Tokenizer, number: int) -> tuple[int, ...]:
    return _encoded(tokenizer, f"Document {number}:\n")


@lru_cache(maxsize=1 << 14)
def _encoded(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    return tuple(encode(tokenizer, text))
