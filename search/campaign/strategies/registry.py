"""From a configured strategy to the object."""

from __future__ import annotations

from search.campaign.strategies.base import Strategy
from search.campaign.strategies.controls import BestOfNStrategy, RandomStrategy
from search.campaign.strategies.evolve import EvolveStrategy
from search.campaign.strategies.refine import RefineStrategy
from search.config import BestOfN, Evolve, RandomGrammar, Refine, StrategyConfig


def make_strategy(config: StrategyConfig, seed: int) -> Strategy:
    """The strategy a configuration describes."""
    match config:
        case Evolve():
            return EvolveStrategy(
                seed,
                islands=config.islands,
                fresh=config.fresh,
                crossover=config.crossover,
                migrate_every=config.migrate_every,
            )
        case BestOfN():
            return BestOfNStrategy(seed)
        case Refine():
            return RefineStrategy(seed, patience=config.patience)
        case RandomGrammar():
            return RandomStrategy(seed)
