"""`python -m search.cli` is `vortex-search`."""

from __future__ import annotations

from search.cli import main

main()
