"""Modules and kernels that stand in for transformers' own in a decode step."""
