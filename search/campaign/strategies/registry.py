"""Strategies by name.

Another distribution adds one through an entry point of the group `vortex_search.strategies`, whose value is the
strategy's class (docs/extending/strategy.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vortex_core.registry import Registry

if TYPE_CHECKING:
    from search.campaign.strategies.base import Strategy
    from search.config import StrategyConfig

_HERE = "search.campaign.strategies"

STRATEGIES: Registry[type[Strategy]] = Registry(
    "strategy",
    {
        "evolve": f"{_HERE}.evolve:EvolveStrategy",
        "best_of_n": f"{_HERE}.controls:BestOfNStrategy",
        "refine": f"{_HERE}.refine:RefineStrategy",
        "random": f"{_HERE}.controls:RandomStrategy",
        "tune": f"{_HERE}.tune:TuneStrategy",
        "simplify": f"{_HERE}.simplify:SimplifyStrategy",
        "portfolio": f"{_HERE}.portfolio:PortfolioStrategy",
    },
    group="vortex_search.strategies",
    code="VS001",
)


def make_strategy(config: StrategyConfig, seed: int) -> Strategy:
    """The strategy a configuration describes."""
    return STRATEGIES.get(config.kind)(seed, **dict(config.settings))
