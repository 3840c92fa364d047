"""Conformance suites: subclass one in a test module of your own to check a task, a stage or a backend.

Those of proposers, strategies and stores are `agents.testing.ProposerConformance`,
`search.testing.StrategyConformance` and `search.testing.StoreConformance`. Names load on first use: a suite for
backends brings torch along, one for tasks does not.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evaluators.testing.backends import BackendConformance
    from evaluators.testing.stages import StageConformance
    from evaluators.testing.tasks import TaskConformance
    from evaluators.testing.tokenizers import ByteTokenizer, WordTokenizer

_HOME = {
    "BackendConformance": "backends",
    "StageConformance": "stages",
    "TaskConformance": "tasks",
    "ByteTokenizer": "tokenizers",
    "WordTokenizer": "tokenizers",
}

__all__ = ["BackendConformance", "ByteTokenizer", "StageConformance", "TaskConformance", "WordTokenizer"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"evaluators.testing.{_HOME[name]}"), name)
    raise AttributeError(f"module 'evaluators.testing' has no attribute {name!r}")
