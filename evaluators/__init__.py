"""Evaluators: the stages that measure a candidate, from free to expensive."""
