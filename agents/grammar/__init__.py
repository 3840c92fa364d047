"""Programs without a language model: typed growth, mutation and crossover on the IR. Imports no torch."""

from __future__ import annotations

from agents.grammar.fuzz import random_program

__all__ = ["random_program"]
