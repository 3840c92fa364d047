"""The screen: what a flow's selection does to recorded attention. No model runs; thousands of flows can be scored."""

from evaluators.screen.recording import AttentionRecording
from evaluators.screen.score import DEFAULT_BUDGETS, Screener, ScreenPoint, ScreenScore

__all__ = ["DEFAULT_BUDGETS", "AttentionRecording", "ScreenPoint", "ScreenScore", "Screener"]
