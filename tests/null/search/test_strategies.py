"""Strategies: the contract for each, and what is particular to one."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from agents.grammar.marks import retuned
from search.campaign.archive import Verdict
from search.campaign.strategies.base import Member, Strategy, Tell, randomness
from search.campaign.strategies.controls import BestOfNStrategy, RandomStrategy
from search.campaign.strategies.evolve import EvolveStrategy
from search.campaign.strategies.population import Population
from search.campaign.strategies.portfolio import PortfolioStrategy
from search.campaign.strategies.refine import RefineStrategy
from search.campaign.strategies.simplify import SimplifyStrategy
from search.campaign.strategies.tune import TuneStrategy
from search.testing import StrategyConformance
from vortex_core.errors import VortexError


class TestEvolve(StrategyConformance):
    def make(self, seed: int) -> Strategy:
        return EvolveStrategy(seed, size=8)


class TestRefine(StrategyConformance):
    def make(self, seed: int) -> Strategy:
        return RefineStrategy(seed, patience=3)


class TestBestOfN(StrategyConformance):
    def make(self, seed: int) -> Strategy:
        return BestOfNStrategy(seed)


class TestTune(StrategyConformance):
    def make(self, seed: int) -> Strategy:
        return TuneStrategy(seed, trials=7)


class TestSimplify(StrategyConformance):
    def make(self, seed: int) -> Strategy:
        return SimplifyStrategy(seed, patience=3)


class TestPortfolio(StrategyConformance):
    def make(self, seed: int) -> Strategy:
        return PortfolioStrategy(seed)


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


def test_evolve_prefers_the_front_however_many_children_it_has():
    strategy = EvolveStrategy(0, cells=0, fresh=0, crossover=0)
    strategy.tell(scored(None, "good", 0.0, 2.0))
    strategy.tell(scored(None, "dominated", -0.1, 1.5))
    counts = parents_of(strategy, range(300))
    assert counts["good"] > 1.5 * counts["dominated"] > 0
    for n in range(6):
        strategy.tell(Tell(n, "asked", parents=("good",)))
    counts = parents_of(strategy, range(300))
    assert counts["good"] > 1.5 * counts["dominated"] > 0


def test_a_crowd_of_mediocre_programs_does_not_outweigh_the_best():
    strategy = EvolveStrategy(0, cells=0, fresh=0, crossover=0)
    strategy.tell(scored(None, "best", 0.9, 1.0))
    for i in range(100):
        strategy.tell(scored(None, f"other{i}", 0.1 + i / 1000, 1.0))
    assert parents_of(strategy, range(300))["best"] > 100


def test_evolve_looks_elsewhere_before_it_goes_on_from_the_references():
    strategy = EvolveStrategy(0, start=40)
    strategy.tell(scored(None, "reference", 0.0, 2.0))
    assert {strategy.ask(n).kind for n in range(40)} == {"seed"}
    assert sum(strategy.ask(n).kind == "seed" for n in range(40, 240)) < 40


def test_evolve_ranks_broken_gates_behind_however_fast():
    strategy = EvolveStrategy(0, cells=0, fresh=0, crossover=0)
    strategy.tell(scored(None, "kept", 0.0, 1.2))
    strategy.tell(scored(None, "broken", -0.9, 9.0, Verdict.FAILED))
    counts = parents_of(strategy, range(300))
    assert counts["kept"] > 1.5 * counts["broken"]


def test_evolve_counts_knob_variants_of_a_program_once():
    strategy = EvolveStrategy(0, cells=0, fresh=0, crossover=0)
    strategy.tell(scored(None, "other", 0.0, 2.0, ir_hash="B"))
    for i in range(9):
        strategy.tell(scored(None, f"variant{i}", 0.0, 2.0, ir_hash="A"))
    counts = parents_of(strategy, range(400))
    assert 0.35 < counts["other"] / 400 < 0.65


def test_evolve_crosses_different_programs_only():
    strategy = EvolveStrategy(0, cells=0, fresh=0, crossover=1)
    strategy.tell(scored(None, "a", 0.0, 2.0, ir_hash="A"))
    strategy.tell(scored(None, "a2", 0.1, 1.9, ir_hash="A"))
    assert {strategy.ask(n).kind for n in range(50)} == {"mutate"}
    strategy.tell(scored(None, "b", 0.2, 1.0, ir_hash="B"))
    asks = [strategy.ask(n) for n in range(50)]
    assert {a.kind for a in asks} == {"crossover"}
    assert all("b" in a.parents for a in asks)


def test_evolve_counts_children_that_are_under_way():
    strategy = EvolveStrategy(0, fresh=0, crossover=0, cells=0)
    strategy.tell(scored(None, "a", 0.0, 2.0))
    strategy.tell(scored(None, "b", 0.0, 2.0))
    for n in range(9):
        strategy.tell(Tell(n, "asked", parents=("a",)))
    counts = parents_of(strategy, range(300))
    assert counts["b"] > 4 * counts["a"] > 0


def test_what_is_level_within_its_interval_stays_on_the_front():
    population = Population(64, confidence=1.0)
    wide = {"low": -0.1, "high": 0.1}
    population.tell(replace(scored(0, "best", 0.0, 2.0), **wide))
    population.tell(replace(scored(1, "level", -0.02, 1.9), low=-0.12, high=0.08))
    population.tell(replace(scored(2, "worse", -0.5, 1.9), low=-0.6, high=-0.4))
    assert dict(
        zip([m.key for m in population.members], population.layers(population.members), strict=True)
    ) == {
        "best": 0,
        "level": 0,
        "worse": 1,
    }


def random_members(seed: int, many: int) -> list[Member]:
    """Programs with ties in both axes and intervals of all widths."""
    rng = randomness(seed, 0)
    return [
        Member(f"k{n}", f"ir{n % 20}", a, rng.randrange(12) / 4, rng.choice(list(Verdict)), a - rng.random() / 4, a)
        for n in range(many)
        for a in [rng.randrange(10) / 10]
    ]  # fmt: skip


@pytest.mark.parametrize("confidence", [0.0, 0.3, 1.0])
def test_layers_are_what_nobody_as_fast_is_surely_better_than_peeled_off(confidence: float):
    members = random_members(1, 90)
    found = dict(zip(members, Population(64, confidence).layers(members), strict=True))
    first = 0
    for verdict in Verdict:
        left = [m for m in members if m.verdict is verdict]
        for layer in range(first, first + 4):
            front = [
                m for m in left
                if not any(
                    o.speed >= m.speed
                    and o.accuracy + confidence * (o.low - o.accuracy) > m.accuracy + confidence * (m.high - m.accuracy)
                    for o in left
                )
            ]  # fmt: skip
            assert {m.key for m in left if found[m] == layer} == {m.key for m in front}
            left = [m for m in left if m not in front]
        assert all(found[m] == first + 4 for m in left)
        first = 1 + max(found[m] for m in members if m.verdict is verdict)


def test_weights_between_results_are_those_of_a_population_told_all_at_once():
    strategy, fresh = (EvolveStrategy(0, size=64) for _ in range(2))
    tells = [
        Tell(n, "scored", m.key, m.ir_hash, m.accuracy, m.speed, m.verdict, low=m.low, high=m.high)
        for n, m in enumerate(random_members(2, 100))
    ]
    told = []
    for n, tell in enumerate(tells):
        told += [tell, Tell(n, "asked", parents=(tells[n // 2].key,)), Tell(n, "asked", parents=("k3", "k4"))]
    for tell in told:
        strategy.tell(tell)
        if tell.outcome == "asked":
            strategy.ask(tell.number or 0)
    for tell in told:
        fresh.tell(tell)
    assert strategy.population.weights() == fresh.population.weights()
    weights = dict(zip(*strategy.population.weights(), strict=True))
    assert sum(weights.values()) == pytest.approx(
        sum(2.0 ** -min(n, 4) for n in {*strategy.population.layers([*weights])})
    )


def test_hypervolume_that_only_one_adds_makes_it_a_likelier_parent():
    population = Population(64, confidence=0.0)
    for n, (accuracy, speed) in enumerate([(0.0, 3.0), (0.01, 2.99), (0.02, 2.98), (0.9, 1.0)]):
        population.tell(scored(n, f"k{n}", accuracy, speed))
    members, weights = population.weights()
    found = dict(zip([m.key for m in members], weights, strict=True))
    assert found["k3"] > 1.5 * max(found["k0"], found["k1"])


def test_a_population_is_bounded_and_keeps_the_best_of_each_cell():
    population = Population(16, confidence=0.25)
    population.tell(replace(scored(0, "rare", -0.9, 1.0), cell="rare"))
    for n in range(1, 400):
        population.tell(replace(scored(n, f"k{n}", n / 400, 1 + n / 400), cell=f"c{n % 4}"))
    assert len(population) <= 32
    assert "rare" in {m.key for m in population.members}
    assert "k399" in {m.key for m in population.members}


def test_tune_moves_towards_the_best_point_and_then_to_the_next_program():
    strategy = TuneStrategy(0, trials=24)
    strategy.tell(scored(None, "a", 0.5, 1.0))
    strategy.tell(scored(None, "b", 0.4, 1.0))
    first, last = [], []
    for n in range(24):
        ask = strategy.ask(n)
        assert (ask.kind, ask.parents) == ("tune", ("a",))
        strategy.tell(Tell(n, "asked", parents=ask.parents, point=ask.point))
        off = abs(ask.point[0] - 0.8)
        (first if n < 6 else last if n >= 16 else []).append(off)
        strategy.tell(replace(scored(n, f"a{n}", 0.5 - off, 1.0, parents=("a",)), point=ask.point))
    assert sum(last) / len(last) < sum(first) / len(first)
    assert strategy.ask(24).parents == ("b",)


def test_the_tuner_finds_a_marked_constant():
    """What Optuna asks for, written into an author's own text, ends near the best value of its range."""
    source = 'class A:\n    """Tune: 0.6 in [0.5, 0.99]"""\n    def f(self): return 0.6'
    strategy, tried = TuneStrategy(0, trials=24), []
    strategy.tell(scored(None, "a", 0.5, 1.0))
    for n in range(24):
        ask = strategy.ask(n)
        strategy.tell(Tell(n, "asked", parents=ask.parents, point=ask.point))
        moved = retuned(source, ask.point)
        assert moved is not None
        value = float(moved[0].rpartition("return ")[2])
        tried.append(value)
        told = scored(n, f"a{n}", 0.5 - abs(value - 0.83), 1.0, parents=("a",))
        strategy.tell(replace(told, point=ask.point))
    assert min(abs(value - 0.83) for value in tried) < 0.02
    assert all(0.5 <= value <= 0.99 for value in tried)


def test_simplify_takes_away_while_nothing_is_lost():
    strategy = SimplifyStrategy(0, patience=2, confidence=1.0)
    strategy.tell(replace(scored(None, "whole", 0.9, 1.0), size=30, low=0.88, high=0.92))
    assert strategy.ask(0).parents == ("whole",)
    strategy.tell(replace(scored(0, "less", 0.89, 1.0, parents=("whole",)), size=20, low=0.87, high=0.91))
    assert strategy.ask(1).parents == ("less",)
    # As much below `less` as that is below `whole`: small losses do not add up.
    strategy.tell(
        replace(scored(1, "too little", 0.875, 1.0, parents=("less",)), size=10, low=0.85, high=0.9)
    )
    assert strategy.ask(2).parents == ("less",)
    strategy.tell(replace(scored(2, "larger", 0.95, 1.0, parents=("less",)), size=40))
    assert strategy.ask(3).parents == ("larger",), "the next best begins once patience is over"


def test_a_portfolio_moves_to_what_gains_and_starves_nobody():
    strategy = PortfolioStrategy(0, parts=({"kind": "evolve"}, {"kind": "random"}), floor=0.1)
    strategy.tell(scored(None, "ref", 0.0, 1.0))
    for n in range(200):
        ask = strategy.ask(n)
        strategy.tell(Tell(n, "asked", parents=ask.parents, by=ask.by))
        accuracy = n / 200 if ask.by == "evolve" else -1.0
        strategy.tell(replace(scored(n, f"k{n}", accuracy, 1.0, parents=ask.parents), by=ask.by))
    shares = strategy.shares
    assert shares["evolve"] > 0.9
    assert shares["random"] >= 0.05


def test_a_portfolio_has_no_unknown_or_repeated_parts():
    with pytest.raises(VortexError, match="VS001"):
        PortfolioStrategy.settings(parts=({"kind": "nobody"},))
    with pytest.raises(ValueError, match="repeat"):
        PortfolioStrategy.settings(parts=({"kind": "random"}, {"kind": "random"}))


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
    strategy = EvolveStrategy(0, cells=0, fresh=0, crossover=0)
    strategy.tell(Tell(0, "duplicate", "other arm's", "ir", 0.0, 2.0, Verdict.PROVEN))
    assert strategy.ask(1).parents == ("other arm's",)
