"""Programs without a language model: typed growth, mutation and crossover on the IR. Imports no torch."""

from __future__ import annotations

from agents.grammar.fuzz import random_program
from agents.grammar.proposer import GrammarProposer

__all__ = ["GrammarProposer", "random_program"]
