"""Commands that follow runs: watch, ui."""

from __future__ import annotations

from typing import Annotated

import typer

from search.cli.console import err, out
from search.cli.opened import RunName, opened


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (watch, ui):
        app.command()(command)


def watch(
    run: RunName,
    every: Annotated[float, typer.Option(min=0.2, help="Seconds between looks at the log.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Show it as it is and return.")] = False,
) -> None:
    """Follow a run in the terminal: progress, the ranking as it grows, what is under way.

    Ends when the run does. It only reads, from any machine that sees the run's folder. Under a pipe it prints a
    line whenever something happened.

    Example:

        vortex-search watch default-smollm2-135m-grammar-s0
    """
    from search.live.follow import Follower
    from search.live.watch import watch as follow

    with opened(run) as it:
        follow(out, Follower(it.run), it.config, every, once=once)


def ui(
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port on the loopback; 0: any that is free.")
    ] = 8321,
) -> None:
    """Show all runs as a local page: progress, each report as it grows, two runs side by side. Ctrl-C ends it.

    It listens on the loopback only and reads runs, nothing else. From elsewhere: `ssh -L 8321:localhost:8321 HOST`.

    Example:

        vortex-search ui --port 8321
    """
    from search.errors import bad_value, not_installed

    try:
        import uvicorn

        from search.live.app import build
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("starlette", "uvicorn"):
            raise
        raise not_installed(str(error.name), "pip install 'vortex-search[ui]'") from error
    import socket

    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError as error:
            raise bad_value("--port", port, f"a free port ({error.strerror})") from error
        err.print(f"http://127.0.0.1:{listener.getsockname()[1]}/  (Ctrl-C ends it)", markup=False)
        uvicorn.Server(uvicorn.Config(build(), log_level="warning")).run(sockets=[listener])
