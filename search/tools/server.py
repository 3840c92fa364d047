"""`vortex-search mcp`: eleven tools with which an agent writes, checks, measures, searches and exports on its own.

Programs arrive as source and are traced in the jail, as everywhere. What takes longer than a moment is a job that is
polled. Limits on time, money and jobs at once are the server's: no call can raise them.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcp.server import MCPServer

from search.tools.jobs import Jobs
from vortex_core import __version__
from vortex_core.errors import VortexError
from vortex_core.flow.trace import Traced

INSTRUCTIONS = """Discover sparse-attention algorithms for LLM serving. A program (vFlow) says which pages of the KV
cache a decode step reads. Read `language` once, then: write a program, `check` it (free, a moment), `explain` what a
step costs, `evaluate` it (a job: accuracy and speed beside dense attention), change one thing, repeat. `campaign`
searches by itself; `leaderboard`, `show` and `export` read what it found. Jobs answer at once: ask `job` with
wait_seconds until the state is no longer running. Failures are data: {"error": {code, message, remedy, location}}."""


@dataclass(frozen=True)
class Limits:
    """What the server allows.

    Attributes:
        seconds: time budget of a campaign at most.
        dollars: what a campaign's proposers may cost at most; 0: only proposers that cost nothing.
        wait: longest that one poll waits.
    """

    seconds: float = 3600.0
    dollars: float = 0.0
    wait: float = 240.0


def build(jobs: Jobs, folder: Path, limits: Limits) -> MCPServer:
    """The server, its tools over `jobs`; programs are kept under `folder` by the hash of their text."""
    server = MCPServer("vortex-search", instructions=INSTRUCTIONS, version=__version__)

    @server.tool()
    async def language() -> str:
        """The language reference: what a program may contain. Read it before writing one."""
        from vortex_core.flow.reference import compact

        return compact()

    @server.tool()
    async def library() -> dict[str, Any]:
        """The published algorithms, by name with their source: examples to learn from and to compare with."""
        from vortex_core import library as shelf

        return {name: shelf.source(name) for name in shelf.names()}

    @server.tool()
    async def check(source: str, model: str = "qwen3-8b") -> dict[str, Any]:
        """Trace and verify a program in the jail. Answers with its identity, knobs, warnings and what its states take
        of a model's memory; or with the errors, each with the mended line where a script can tell it."""

        def work() -> dict[str, Any]:
            from search.commands.check import state_rows

            traced = _read(source, folder)
            return {
                "ok": True,
                "name": traced.name,
                "ir_hash": traced.ir_hash,
                "key": traced.key,
                "knobs": traced.knobs.to_json(),
                "page_states": state_rows(traced, model),
                "warnings": list(traced.warnings),
            }

        return await _answer(work)

    @server.tool()
    async def explain(source: str, model: str = "smollm2-135m", gpu: str = "h200") -> dict[str, Any]:
        """What one decode step costs on a named GPU: launches, bytes, roofline time. Modelled, needs no GPU."""
        return await _answer(
            lambda: jobs.start(
                ["explain", _file(source, folder), "--model", model, "--gpu", gpu], tool="explain"
            )
        )

    @server.tool()
    async def evaluate(source: str, model: str = "smollm2-135m", plan: str = "default") -> dict[str, Any]:
        """Measure a program as a campaign would. A job; its result holds every stage with numbers and intervals."""
        return await _answer(
            lambda: jobs.start(
                ["evaluate", _file(source, folder), "--model", model, "--plan", plan], tool="evaluate"
            )
        )

    @server.tool()
    async def campaign(
        run: str,
        model: str = "smollm2-135m",
        campaign: str = "default",
        proposer: str = "grammar",
        candidates: int | None = None,
        seconds: float | None = None,
    ) -> dict[str, Any]:
        """Search by itself, under a run's name. A job; the same name resumes it, and nothing is done twice."""
        wanted = limits.seconds if seconds is None else min(seconds, limits.seconds)
        options = ["--run", run, "--model", model, "--campaign", campaign, "--proposer", proposer]
        options += ["--time-budget", f"{wanted:.0f}s"]
        if candidates is not None:
            options += ["--max-candidates", str(candidates)]
        if proposer != "grammar":
            options += ["--max-dollars", f"{limits.dollars:g}"]
        return await _answer(lambda: jobs.start(options, tool="campaign", run=run))

    @server.tool()
    async def job(name: str, wait_seconds: float = 0.0) -> dict[str, Any]:
        """How far a job is, with its result once it has ended."""
        return await _answer(lambda: jobs.poll(name, min(wait_seconds, limits.wait)))

    @server.tool()
    async def cancel(name: str) -> dict[str, Any]:
        """Interrupt a job. A campaign pauses and keeps all it has finished."""
        return await _answer(lambda: jobs.cancel(name))

    @server.tool()
    async def leaderboard(run: str, limit: int = 20) -> dict[str, Any]:
        """What a run has measured so far, ranked beside dense and the library; works while it runs."""
        return await _answer(lambda: jobs.run(["leaderboard", run, "--limit", str(limit)]))

    @server.tool()
    async def show(run: str, candidate: str) -> dict[str, Any]:
        """One candidate of a run: source, measurements with intervals, ancestry."""
        return await _answer(lambda: jobs.run(["show", run, candidate]))

    @server.tool()
    async def export(run: str, rank: int = 1) -> dict[str, Any]:
        """Write a program with its measurements and checking script to a folder; answers with the folder."""
        out = folder / "exports" / f"{hashlib.sha256(run.encode()).hexdigest()[:8]}-rank{rank}"
        out.parent.mkdir(parents=True, exist_ok=True)
        return await _answer(
            lambda: jobs.run(["export", run, "--rank", str(rank), "--out", str(out), "--force"])
        )

    return server


def _file(source: str, folder: Path) -> str:
    """The path of a program's text, written once."""
    name = hashlib.sha256(source.encode("utf-8", "replace")).hexdigest()[:16]
    path = folder / "programs" / f"flow_{name}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source, encoding="utf-8", errors="replace")
    return str(path)


def _read(source: str, folder: Path) -> Traced:
    from vortex_core.sandbox.load import trace_file

    return trace_file(_file(source, folder))


async def _answer(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `work` gives, or its typed failure as data. It runs in a thread, so that the server goes on listening."""
    try:
        return await asyncio.to_thread(work)
    except VortexError as error:
        return {"error": error.to_json()}
