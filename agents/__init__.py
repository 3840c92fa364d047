"""Proposers: what writes the next candidate program."""
