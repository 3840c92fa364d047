"""Strategies: what to ask a proposer for next. Objects with `ask` and `tell`, no input or output."""
