"""Strategies: the contract for each, and what is particular to one."""

from __future__ import annotations

from collections import Counter

from search.campaign.archive import Verdict
from search.campaign.strategies.base import Strategy, Tell
from search.campaign.strategies.controls import BestOfNStrategy, RandomStrategy
from search.campaign.strategies.evolve import EvolveStrategy
from search.campaign.strategies.refine import RefineStrategy
from search.testing import StrategyConformance


class TestEvolve(StrategyConformance):
    def make(self, seed: int) -> Strategy:
        return EvolveStrategy(seed, islands=3, migrate_every=5)


class TestRefine(StrategyConformance):
    def make(self, seed: int) -> Strategy:
        return RefineStrategy(seed, patience=3)


class TestBestOfN(StrategyConformance):
    def make(self, seed: int) -> Strategy:
        return BestOfNStrategy(seed)


class TestRandom(StrategyConformance):
    def make(self, seed: int) -> Strategy:
        return RandomStrategy(seed)


def scored(
    number: int | None,
    key: str,
    accuracy: float,
    speed: float,
    verdict: Verdict = Verdict.PROVEN,
    parents: tuple[str, ...] = (),
    ir_hash: str = "",
) -> Tell:
    return Tell(number, "scored", key, ir_hash or f"ir-{key}", accuracy, speed, verdict, parents)


def parents_of(strategy: Strategy, asks: range) -> Counter[str]:
    return Counter(p for n in asks for p in strategy.ask(n).parents)


def test_evolve_prefers_the_front_and_programs_with_few_children():
    strategy = EvolveStrategy(0, islands=1, fresh=0, crossover=0)
    strategy.tell(scored(None, "good", 0.0, 2.0))
    strategy.tell(scored(None, "dominated", -0.1, 1.5))
    counts = parents_of(strategy, range(300))
    assert counts["good"] > 1.5 * counts["dominated"] > 0
    for n in range(6):
        strategy.tell(Tell(n, "stopped", f"child{n}", f"ir{n}", parents=("good",)))
    counts = parents_of(strategy, range(300))
    assert counts["dominated"] > counts["good"]


def test_evolve_ranks_broken_gates_behind_however_fast():
    strategy = EvolveStrategy(0, islands=1, fresh=0, crossover=0)
    strategy.tell(scored(None, "kept", 0.0, 1.2))
    strategy.tell(scored(None, "broken", -0.9, 9.0, Verdict.FAILED))
    counts = parents_of(strategy, range(300))
    assert counts["kept"] > 1.5 * counts["broken"]


def test_evolve_counts_knob_variants_of_a_program_once():
    strategy = EvolveStrategy(0, islands=1, fresh=0, crossover=0)
    strategy.tell(scored(None, "other", 0.0, 2.0, ir_hash="B"))
    for i in range(9):
        strategy.tell(scored(None, f"variant{i}", 0.0, 2.0, ir_hash="A"))
    counts = parents_of(strategy, range(400))
    assert 0.35 < counts["other"] / 400 < 0.65


def test_evolve_crosses_different_programs_only():
    strategy = EvolveStrategy(0, islands=1, fresh=0, crossover=1)
    strategy.tell(scored(None, "a", 0.0, 2.0, ir_hash="A"))
    strategy.tell(scored(None, "a2", 0.1, 1.9, ir_hash="A"))
    assert {strategy.ask(n).kind for n in range(50)} == {"mutate"}
    strategy.tell(scored(None, "b", 0.2, 1.0, ir_hash="B"))
    asks = [strategy.ask(n) for n in range(50)]
    assert {a.kind for a in asks} == {"crossover"}
    assert all("b" in a.parents for a in asks)


def test_evolve_islands_are_separate_until_they_migrate():
    strategy = EvolveStrategy(0, islands=2, fresh=0, crossover=0, migrate_every=3)
    strategy.tell(scored(0, "zero", 0.0, 2.0))
    strategy.tell(scored(1, "one", -0.1, 1.0))
    assert set(parents_of(strategy, range(0, 40, 2))) == {"zero"}
    assert set(parents_of(strategy, range(1, 40, 2))) == {"one"}
    strategy.tell(Tell(2, "rejected"))
    assert set(parents_of(strategy, range(1, 80, 2))) == {"zero", "one"}


def test_refine_follows_improvements_and_restarts():
    strategy = RefineStrategy(0, patience=2)
    assert strategy.ask(0).kind == "seed"
    strategy.tell(scored(None, "ref", 0.0, 1.0))
    strategy.tell(scored(0, "better", 0.0, 2.0, parents=("ref",)))
    assert strategy.ask(1).parents == ("better",)
    strategy.tell(scored(1, "worse", 0.0, 1.5, parents=("better",)))
    assert strategy.ask(2).parents == ("better",)
    strategy.tell(Tell(2, "rejected", parents=("better",)))
    assert strategy.ask(3).kind == "seed"
    strategy.tell(scored(3, "new chain", -0.2, 1.1))
    assert strategy.ask(4).parents == ("new chain",)


def test_best_of_n_never_leaves_its_start():
    strategy = BestOfNStrategy(0)
    strategy.tell(scored(None, "slow", 0.0, 1.0))
    strategy.tell(scored(None, "fast", 0.0, 1.5))
    strategy.tell(scored(0, "found", 0.0, 9.0, parents=("fast",)))
    assert {strategy.ask(n).parents for n in range(20)} == {("fast",)}


def test_random_has_no_parents():
    strategy = RandomStrategy(0)
    strategy.tell(scored(None, "ref", 0.0, 1.0))
    assert {strategy.ask(n).parents for n in range(20)} == {()}


def test_a_duplicate_with_scores_joins_the_population():
    strategy = EvolveStrategy(0, islands=1, fresh=0, crossover=0)
    strategy.tell(Tell(0, "duplicate", "other arm's", "ir", 0.0, 2.0, Verdict.PROVEN))
    assert strategy.ask(1).parents == ("other arm's",)
