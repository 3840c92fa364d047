"""Public conformance suites of the search layer.

A third party's store or strategy is checked by subclassing a suite and saying how to build one:

    class TestMyStore(StoreConformance):
        def open(self, tmp_path): return MyStore(tmp_path / "log")
"""

from __future__ import annotations

import inspect
from collections import Counter
from dataclasses import replace
from pathlib import Path

from search.campaign.archive import Verdict
from search.campaign.strategies.base import Outcome, Strategy, Tell, randomness
from search.log import events as ev
from search.log.store import EventStore

EXAMPLES: tuple[ev.Event, ...] = (
    ev.CampaignStarted("r", {"seed": 0}, {"items": 3}, {"python": "3"}, {"cpus": 2}),
    ev.SessionStarted(7, {"limits": {"candidates": 3}}),
    ev.Asked(1, "main", "mutate", ("a", "b"), 5, "grammar"),
    ev.ProposalFailed(1, {"code": "VA1", "message": "é·漢"}, 0.5),
    ev.CampaignPaused("interrupted"),
)


class StoreConformance:
    """What every `EventStore` must do."""

    def open(self, tmp_path: Path) -> EventStore:
        """A new empty store, or the one opened before at the same place if it persists."""
        raise NotImplementedError

    def test_reads_back_what_was_appended_in_order(self, tmp_path: Path) -> None:
        """Order, numbering and content survive."""
        store = self.open(tmp_path)
        first = store.append(*EXAMPLES[:2])
        second = store.append(*EXAMPLES[2:])
        records = list(store.read())
        assert records == first + second
        assert [r.seq for r in records] == list(range(1, len(EXAMPLES) + 1))
        assert tuple(r.event for r in records) == EXAMPLES
        store.close()

    def test_reads_after_a_number(self, tmp_path: Path) -> None:
        """A reader can follow the log."""
        store = self.open(tmp_path)
        store.append(*EXAMPLES)
        assert [r.seq for r in store.read(after=3)] == [4, 5]
        assert list(store.read(after=5)) == []
        store.close()

    def test_an_append_is_all_or_nothing(self, tmp_path: Path) -> None:
        """An event that cannot be stored takes the others of its append with it."""
        store = self.open(tmp_path)
        store.append(EXAMPLES[0])
        bad = ev.SessionStarted(1, {"not json": object()})
        try:
            store.append(EXAMPLES[1], bad)
        except TypeError:
            pass
        else:
            raise AssertionError("an event that is not JSON was accepted")
        assert [r.event for r in store.read()] == [EXAMPLES[0]]
        assert [r.seq for r in store.append(EXAMPLES[1])] == [2]
        store.close()

    def test_a_text_is_there_once_and_with_what_names_it(self, tmp_path: Path) -> None:
        """Texts are found from the moment they are given, and written by the next append."""
        store = self.open(tmp_path)
        assert store.texts.get("a.py") is None
        store.texts.keep("a.py", "é·漢\0")
        store.texts.keep("a.py", "another")
        store.texts.keep("b.txt", "")
        assert store.texts.get("a.py") == "é·漢\0"
        store.append(EXAMPLES[0])
        store.texts.keep("a.py", "another")
        store.append(EXAMPLES[1])
        assert store.texts.get("a.py") == "é·漢\0"
        assert store.texts.get("b.txt") == ""
        assert sorted(store.texts.names()) == ["a.py", "b.txt"]
        store.close()

    def test_closing_twice_is_harmless(self, tmp_path: Path) -> None:
        """`close` may be called again."""
        store = self.open(tmp_path)
        store.close()
        store.close()


_OUTCOMES: tuple[Outcome, ...] = ("scored", "scored", "stopped", "rejected", "duplicate")


class StrategyConformance:
    """What every `Strategy` must do."""

    def make(self, seed: int) -> Strategy:
        """A new strategy."""
        raise NotImplementedError

    def history(self, strategy: Strategy, asks: int, seed: int = 0) -> list[Tell]:
        """Drive a strategy through plausible outcomes, told out of order; returns the tells."""
        rng = randomness(seed, -1)
        told = [
            Tell(None, "scored", f"ref{i}", f"ir-ref{i}", rng.random() - 1, 1 + rng.random(), Verdict.UNCLEAR)
            for i in range(2)
        ]
        for tell in told:
            strategy.tell(tell)
        waiting: list[Tell] = []
        for n in range(asks):
            ask = strategy.ask(n)
            asked = Tell(n, "asked", parents=ask.parents, point=ask.point, by=ask.by)
            strategy.tell(asked)
            told.append(asked)
            outcome = rng.choice(_OUTCOMES)
            accuracy, speed = None, None
            if outcome == "scored":
                accuracy, speed = rng.uniform(-0.3, 0.1), rng.uniform(0.8, 3.0)
            key, ir_hash = f"k{n}", f"ir{n % 7}"
            if outcome == "rejected":
                key = ir_hash = ""
            elif outcome == "duplicate":
                key, ir_hash = "ref0", "ir-ref0"
            verdict = rng.choice(list(Verdict))
            told_of = Tell(n, outcome, key, ir_hash, accuracy, speed, verdict, ask.parents)
            if accuracy is not None:
                told_of = replace(told_of, low=accuracy - 0.05, high=accuracy + 0.05, cell=f"cell{n % 3}")
            waiting.append(replace(told_of, size=10 + n % 5, point=ask.point, by=ask.by))
            if len(waiting) > 2:
                told.append(waiting.pop(rng.randrange(len(waiting))))
                strategy.tell(told[-1])
        return told

    def test_its_settings_are_its_keywords(self) -> None:
        """A campaign file says what the constructor takes, with defaults that make a strategy, and nothing else."""
        made = self.make(0)
        settings = type(made).settings
        keywords = [p for p in inspect.signature(type(made)).parameters if p != "seed"]
        assert sorted(settings.model_fields) == sorted(keywords)
        assert isinstance(type(made)(0, **dict(settings())), type(made))
        assert settings.model_config.get("extra") == "forbid", (
            "derive `settings` from vortex_core.configs.Strict"
        )

    def test_asks_are_well_formed(self) -> None:
        """Parents are told, scored candidates, as many as the kind needs."""
        strategy = self.make(1)
        known: set[str] = set()
        needed = {"seed": 0, "mutate": 1, "crossover": 2, "tune": 1, "simplify": 1}
        for tell in self.history(self.make(1), 40):
            for n in range(3):
                ask = strategy.ask(n)
                assert len(ask.parents) == needed[ask.kind]
                assert bool(ask.point) == (ask.kind == "tune")
                assert all(0 <= x <= 1 for x in ask.point)
                assert len(set(ask.parents)) == len(ask.parents)
                assert set(ask.parents) <= known
                assert ask.seed >= 0
            strategy.tell(tell)
            if tell.accuracy is not None:
                known.add(tell.key)

    def test_asking_changes_nothing(self) -> None:
        """The same ask twice, in any order, gives the same answer."""
        strategy = self.make(2)
        self.history(strategy, 30)
        forward = [strategy.ask(n) for n in range(20)]
        backward = [strategy.ask(n) for n in reversed(range(20))]
        assert forward == backward[::-1]

    def test_replaying_tells_rebuilds_the_state(self) -> None:
        """A resumed campaign asks what the first one would have asked."""
        first, second = self.make(3), self.make(3)
        for tell in self.history(first, 40):
            second.tell(tell)
        assert [first.ask(n) for n in range(40, 60)] == [second.ask(n) for n in range(40, 60)]

    def test_a_candidate_may_be_told_again(self) -> None:
        """A better measurement replaces the first, and one that a dearer stage stopped is no parent any more."""
        strategy = self.make(5)
        strategy.tell(Tell(None, "scored", "a", "ir-a", 0.0, 1.5, Verdict.PROVEN))
        strategy.tell(Tell(0, "scored", "b", "ir-b", 0.1, 2.0, Verdict.PROVEN, cell="b"))
        strategy.tell(Tell(0, "scored", "b", "ir-b", 0.0, 2.0, Verdict.FAILED, cell="b"))
        strategy.tell(Tell(0, "stopped", "b", "ir-b"))
        assert not any("b" in strategy.ask(n).parents for n in range(60))

    def test_proposal_seeds_differ(self) -> None:
        """Two asks for the same thing must be able to give different programs."""
        strategy = self.make(4)
        seeds = Counter(strategy.ask(n).seed for n in range(200))
        assert len(seeds) == 200
