"""Serving a flow in other people's engines: what they share, and one package per engine."""

from __future__ import annotations
