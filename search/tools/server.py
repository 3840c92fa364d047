"""`vortex-search mcp`: eleven tools with which an agent writes, checks, measures, searches and exports on its own.

Programs arrive as source and are traced in the jail, as everywhere. What takes longer than a moment is a job that is
polled. Limits on time, money and jobs at once are the server's: no call can raise them.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mcp.server import MCPServer

from agents.inbox import close, hand_in
from search.cli.failures import as_coded
from search.tools.jobs import Jobs
from vortex_core import __version__
from vortex_core.errors import VortexError
from vortex_core.flow.trace import Traced

INSTRUCTIONS = """Discover sparse-attention algorithms for LLM serving. A program (vFlow) says which pages of the KV
cache a decode step reads. Read `language` once, then: write a program, `check` it (free, a moment), `explain` what a
step costs, `evaluate` it (a job; `quick` says first whether it is worth it), change one thing, repeat. `campaign`
searches under a run's name: by itself, or with proposer "inbox" over programs that you `submit`; `leaderboard`,
`compare` and `lessons` read what it found, `export` writes the result. Jobs answer at once: ask `status` with
wait_seconds until the state is no longer running. Failures are data: {"error": {code, message, remedy, location}}."""


@dataclass(frozen=True)
class Limits:
    """What the server allows.

    Attributes:
        seconds: time budget of a campaign at most.
        dollars: what a campaign's proposers may cost at most; 0: only proposers that cost nothing.
        wait: longest that one poll waits.
        calls: calls of paid models that a campaign may make at most; None: as its own limits say.
    """

    seconds: float = 3600.0
    dollars: float = 0.0
    wait: float = 240.0
    calls: int | None = None


_SHOWN = 8  # candidates of one comparison


def build(jobs: Jobs, folder: Path, limits: Limits) -> MCPServer:
    """The server, its tools over `jobs`; programs are kept under `folder` by the hash of their text."""
    server = MCPServer("vortex-search", instructions=INSTRUCTIONS, version=__version__)

    @server.tool()
    async def language(examples: list[str] | None = None) -> str:
        """The language reference: what a program may contain, with published algorithms as examples (all their names
        stand at its end). Read it before writing one."""
        from vortex_core import library as shelf
        from vortex_core.flow.reference import EXAMPLES, compact

        known = shelf.names()
        chosen = [name for name in examples or () if name in known] or list(EXAMPLES)
        return compact(chosen) + "\n\nPublished algorithms: " + ", ".join(known)

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
                ["explain", _file(source, folder), f"--model={model}", f"--gpu={gpu}"], tool="explain"
            )
        )

    @server.tool()
    async def evaluate(
        source: str, model: str = "smollm2-135m", plan: str = "default", quick: bool = False
    ) -> dict[str, Any]:
        """Measure a program as a campaign would: a job; its result holds every stage with numbers and intervals.
        `quick` takes the plan of that name: fewer and shorter items, for a first look."""
        wanted = "quick" if quick else plan
        return await _answer(
            lambda: jobs.start(
                ["evaluate", _file(source, folder), f"--model={model}", f"--plan={wanted}"], tool="evaluate"
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
        """Search under a run's name: a job; the same name resumes it, and nothing is done twice. proposer "grammar"
        writes programs by itself, "inbox" takes what `submit` hands in, others are paid models, within the server's
        limits."""
        wanted = limits.seconds if seconds is None else min(seconds, limits.seconds)
        spec = f"inbox:{_inbox(run, folder)}" if proposer == "inbox" else proposer
        options = [f"--run={run}", f"--model={model}", f"--campaign={campaign}", f"--proposer={spec}"]
        options += [f"--time-budget={wanted:.0f}s"]
        if candidates is not None:
            options += [f"--max-candidates={candidates}"]
        if proposer not in ("grammar", "inbox"):
            options += [f"--max-dollars={limits.dollars:g}"]
        if limits.calls is not None:
            options += [f"--max-calls={limits.calls}"]
        return await _answer(lambda: jobs.start(options, tool="campaign", run=run))

    @server.tool()
    async def submit(
        run: str, sources: list[str], ideas: list[str] | None = None, last: bool = False
    ) -> dict[str, Any]:
        """Hand programs to a run whose proposer is "inbox", one sentence of idea each. Each is checked first; what is
        refused comes back as error and is not handed in. `last` says that no more come: the search ends with finals."""

        def work() -> dict[str, Any]:
            answers: list[dict[str, Any]] = []
            for n, source in enumerate(sources):
                try:
                    traced = _read(source, folder)
                except VortexError as error:
                    answers.append({"error": error.to_json()})
                    continue
                idea = ideas[n] if ideas and n < len(ideas) else traced.flow.doc
                hand_in(_inbox(run, folder), source, idea)
                answers.append({"name": traced.name, "key": traced.key, "ir_hash": traced.ir_hash})
            if last:
                close(_inbox(run, folder))
            return {"run": run, "submitted": answers, "closed": last}

        return await _answer(work)

    @server.tool()
    async def status(job: str, wait_seconds: float = 0.0, cancel: bool = False) -> dict[str, Any]:
        """How far a job is, with its result once it has ended; or interrupt it (a campaign pauses, nothing is lost)."""
        if cancel:
            return await _answer(lambda: jobs.cancel(job))
        return await _answer(lambda: jobs.poll(job, min(wait_seconds, limits.wait)))

    @server.tool()
    async def leaderboard(run: str, limit: int = 20) -> dict[str, Any]:
        """What a run has measured so far, ranked beside dense and the library; works while it runs."""
        return await _answer(lambda: jobs.run(["leaderboard", f"--limit={limit}", "--", run]))

    @server.tool()
    async def compare(run: str, candidates: list[str]) -> dict[str, Any]:
        """Candidates of a run side by side: source, measurements with intervals, ancestry of each."""

        def work() -> dict[str, Any]:
            return {wanted: jobs.run(["show", "--", run, wanted]) for wanted in candidates[:_SHOWN]}

        return await _answer(work)

    @server.tool()
    async def lessons(run: str) -> dict[str, Any]:
        """What a run found out about kinds of change, each with evidence and a confidence that later results move."""

        def work() -> dict[str, Any]:
            from search.campaign.session import lessons_of

            return {"run": run, "lessons": [asdict(lesson) for lesson in lessons_of(run)]}

        return await _answer(work)

    @server.tool()
    async def export(run: str, rank: int = 1) -> dict[str, Any]:
        """Write a program with its measurements and checking script to a folder; answers with the folder."""
        out = folder / "exports" / f"{hashlib.sha256(run.encode()).hexdigest()[:8]}-rank{rank}"
        out.parent.mkdir(parents=True, exist_ok=True)
        return await _answer(
            lambda: jobs.run(["export", f"--rank={rank}", f"--out={out}", "--force", "--", run])
        )

    return server


def _file(source: str, folder: Path) -> str:
    """The path of a program's text, written once."""
    name = hashlib.sha256(source.encode("utf-8", "replace")).hexdigest()[:16]
    path = folder / "programs" / f"flow_{name}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source, encoding="utf-8", errors="replace")
    return str(path)


def _inbox(run: str, folder: Path) -> Path:
    """Where programs for a run are handed in; any name of a run makes a plain one of a folder."""
    return folder / "inbox" / hashlib.sha256(run.encode("utf-8", "replace")).hexdigest()[:16]


def _read(source: str, folder: Path) -> Traced:
    from vortex_core.sandbox.load import trace_file

    return trace_file(_file(source, folder))


async def _answer(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `work` gives, or its failure as data, with a code whatever it is. It runs in a thread, so that the server
    goes on listening."""
    try:
        return await asyncio.to_thread(work)
    except Exception as error:  # noqa: BLE001  whatever a call is given, it ends in one code
        return {"error": as_coded(error).to_json()}
