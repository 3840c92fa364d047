"""The command line, `vortex-search`."""

from __future__ import annotations


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exits with 0, 1 (failed), 2 (bad input) or 130 (interrupted)."""
    from search.cli.streams import open_all

    open_all()  # before anything looks at them
    from search.cli.app import main as run

    run(arguments)


__all__ = ["main"]
