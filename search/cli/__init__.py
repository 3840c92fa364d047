"""The command line, `vortex-search`."""

from __future__ import annotations

from search.cli.app import main

__all__ = ["main"]
