"""Conformance suites: subclass one in a test module of your own to check a task or a stage."""

from evaluators.testing.stages import StageConformance
from evaluators.testing.tasks import TaskConformance
from evaluators.testing.tokenizers import ByteTokenizer, WordTokenizer

__all__ = ["ByteTokenizer", "StageConformance", "TaskConformance", "WordTokenizer"]
