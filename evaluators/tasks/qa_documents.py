"""Made-up documents with a question about them: short lives of people, and of what they made.

Nothing in them is true, so no model answers from memory; every name, place and title is written once in the documents
that are needed, beside others of the same form.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from evaluators.data import words

_FIRST = "Ada Bruno Clara Dario Elsa Felix Greta Hugo Irma Jonas Karla Leon Mara Nils Olga Pavel Rosa Sven Tilda Viktor"
_LAST = (
    "Ash Bell Crow Dun Elm Fern Glen Hart Kes Lind Mor Nor",
    "berg croft dale ford gate holm mann rick son worth",
)
_TOWN = (
    "Alder Brem Carn Dorn Eller Fal Grim Hol Kar Lun Mar Ostr",
    "burg by field ham haven mouth port stead ton wick",
)
_TRADES = "baker carpenter clockmaker glassblower mason potter printer saddler tailor weaver"
_KINDS = "ballad bridge clock fountain map mural novel opera statue tapestry"
_PLACES = tuple(a + b for a in _TOWN[0].split() for b in _TOWN[1].split())


@dataclass(frozen=True)
class DocumentQuestion:
    """A question with the documents that answer it.

    Attributes:
        query: what is asked.
        answers: wordings of the answer, any of which is right.
        documents: needed for it, each a title and a text.
        others: documents that do not answer it, in the order in which they are to be taken.
    """

    query: str
    answers: tuple[str, ...]
    documents: tuple[str, ...]
    others: Iterator[str]


@dataclass(frozen=True)
class _Person:
    name: str
    born: str
    worked: str
    teacher: str
    trade: str
    year: int

    @property
    def document(self) -> str:
        last = self.name.split()[1]
        return (
            f"{self.name}\n{self.name} was born in {self.born} in {self.year}. {last} was taught by {self.teacher}, "
            f"became a {self.trade} and worked in {self.worked} for {10 + self.year % 40} years."
        )


def made_up(rng: random.Random, hops: int) -> DocumentQuestion:
    """A question that one document answers, or one about the maker of something, whose name another document tells.

    Args:
        rng: decides everything; `others` goes on drawing from it.
        hops: 1 or 2.
    """
    names, places, titles = _names(rng), _in_turn(rng, _PLACES), _titles(rng)
    person = _person(rng, names, places)
    about, answer = rng.choice(
        [
            ("In which town was {} born?", person.born),
            ("In which town did {} work?", person.worked),
            ("Who taught {}?", person.teacher),
        ]
    )
    if hops == 1:
        others = _others(rng, names, places, titles, works=False)
        return DocumentQuestion(about.format(person.name), (answer,), (person.document,), others)
    title = next(titles)
    query = about.format(f"the maker of {title}")
    others = _others(rng, names, places, titles, works=True)
    return DocumentQuestion(query, (answer,), (_work(rng, title, person.name), person.document), others)


def _others(
    rng: random.Random, names: Iterator[str], places: Iterator[str], titles: Iterator[str], *, works: bool
) -> Iterator[str]:
    """People, and with `works` also what they made, in turn."""
    while True:
        person = _person(rng, names, places)
        yield person.document
        if works:
            yield _work(rng, next(titles), person.name)


def _person(rng: random.Random, names: Iterator[str], places: Iterator[str]) -> _Person:
    trade = rng.choice(_TRADES.split())
    return _Person(next(names), next(places), next(places), next(names), trade, rng.randrange(1700, 1900))


def _work(rng: random.Random, title: str, maker: str) -> str:
    kind = rng.choice(_KINDS.split())
    made, months = rng.randrange(1700, 1900), rng.randrange(2, 30)
    return f"{title}\n{title} is a {kind} made by {maker} in {made}. It took {months} months."


def _names(rng: random.Random) -> Iterator[str]:
    """Names of people, none twice until all have been."""
    last = [a + b for a in _LAST[0].split() for b in _LAST[1].split()]
    return _in_turn(rng, tuple(f"{first} {second}" for first in _FIRST.split() for second in last))


def _titles(rng: random.Random) -> Iterator[str]:
    return _in_turn(
        rng,
        tuple(f"The {a.capitalize()} {b.capitalize()}" for a in words("adjectives") for b in words("nouns")),
    )


def _in_turn(rng: random.Random, values: tuple[str, ...]) -> Iterator[str]:
    """All values in a random order, and again."""
    order = rng.sample(values, len(values))
    while True:
        yield from order
