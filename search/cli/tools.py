"""The command that lets an agent drive everything: mcp."""

from __future__ import annotations

from typing import Annotated

import typer

from search.cli.console import duration


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(mcp)


def mcp(
    jobs: Annotated[int, typer.Option(min=1, help="Jobs that may run at once.")] = 2,
    job_time: Annotated[str, typer.Option(help="Longest time of a job: 90s, 10m, 1.5h.")] = "1h",
    max_dollars: Annotated[
        float, typer.Option(min=0, help="What the proposers of a campaign may cost; 0: only free ones.")
    ] = 0.0,
) -> None:
    """Serve the project's tools to a coding agent over standard input and output (Model Context Protocol).

    The agent writes programs, has them checked and measured, runs campaigns and exports winners, within the limits
    given here. In an agent's configuration:

        {"mcpServers": {"vortex-search": {"command": "vortex-search", "args": ["mcp"]}}}
    """
    from search.errors import not_installed

    try:
        from search.tools.server import Limits, build
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "mcp":
            raise
        raise not_installed("mcp", "pip install 'vortex-search[mcp]'") from error
    from search.log.run import runs_root
    from search.tools.jobs import Jobs

    seconds = duration(job_time, "--job-time")
    folder = runs_root() / ".tools"
    table = Jobs(folder / "jobs", most=jobs, seconds=seconds)
    try:
        build(table, folder, Limits(seconds=seconds, dollars=max_dollars)).run("stdio")
    finally:
        table.close()
