"""`vortex-search doctor`: facts about this machine, and whether the parts that must work do."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import psutil

from search.log.run import runs_root
from search.machine import machine, versions
from vortex_core.errors import VortexError

Level = Literal["ok", "info", "warning", "problem"]
DISTRIBUTION = "vortex-search"
IMPORT_NAMES = ("vortex_core", "agents", "search", "evaluators", "configs")
KEYS = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "HF_TOKEN")
_NEEDED_DISK = 2 << 30
_NEEDED_MEMORY = 5 << 30

# What a hostile author would try first. Each must be refused, with the code shown.
HOSTILE = {
    "imports os": "import os\nfrom vortex_core import vFlow\n",
    "opens a file": (
        "from vortex_core import ops, vFlow\n\n\nclass Bad(vFlow):\n"
        "    def forward_indexer(self, q, cache):\n"
        "        open('/etc/passwd')\n        return ops.topk(q.sum('dim').max('head'))\n"
    ),
    "never ends": (
        "from vortex_core import ops, vFlow\n\n\nclass Bad(vFlow):\n"
        "    def forward_indexer(self, q, cache):\n"
        "        n = 0\n        while True:\n            n = n + 1\n"
    ),
}


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report."""

    level: Level
    name: str
    words: str
    remedy: str = ""


def examine(model: str) -> list[Finding]:
    """All findings, in a fixed order. Secrets are looked for, never shown.

    Raises:
        VortexError: `VM001`, if `model` is no described model.
    """
    return [
        *_versions(),
        *_hardware(),
        *_weights(model),
        *(Finding("info", name, "set" if os.environ.get(name) else "not set") for name in KEYS),
        _sglang(),
        _hub(),
        *sandbox(),
        *import_names(),
    ]


def _versions() -> Iterator[Finding]:
    for name, version in versions().items():
        missing = version == "missing"
        optional = name == "triton"  # only Linux has it
        level: Level = "ok" if not missing else "warning" if optional else "problem"
        yield Finding(level, name, version, f"pip install {name}" if missing else "")


def _hardware() -> Iterator[Finding]:
    found = machine()
    yield Finding("info", "processor", f"{found['processor']}, {found['usable_cores']} cores usable")
    free = psutil.virtual_memory().available
    enough = free >= _NEEDED_MEMORY
    yield Finding(
        "ok" if enough else "warning",
        "memory",
        f"{found['memory_bytes'] / 2**30:.1f} GiB, {free / 2**30:.1f} GiB available",
        "" if enough else "a campaign on the default model needs about 5 GiB",
    )
    gpus = ", ".join(found["gpus"])
    yield Finding(
        "info", "gpu", gpus or "none: the torch backend runs on the CPU, GPU throughput is modelled"
    )
    root = runs_root()
    existing = next(p for p in (root, *root.absolute().parents) if p.exists())
    disk = shutil.disk_usage(existing).free
    enough, writable = disk >= _NEEDED_DISK, os.access(existing, os.W_OK)
    level: Level = "ok" if enough and writable else "problem" if not writable else "warning"
    words = f"{disk / 2**30:.1f} GiB free for {root}" + ("" if writable else ", not writable")
    yield Finding(level, "disk", words, "" if level == "ok" else "set VORTEX_RUNS to another folder")


def _weights(model: str) -> Iterator[Finding]:
    from vortex_core.engine.models.status import model_status
    from vortex_core.engine.models.weights import cache_dir

    status = model_status(model)
    if status.present and status.fits:
        yield Finding("ok", "weights", f"{model} is in {status.directory}")
    else:
        yield Finding("warning", "weights", "; ".join(status.missing), status.command)
    yield Finding("info", "cache", str(cache_dir()))


def _sglang() -> Finding:
    """Whether `serve` and the `serving` section of campaigns find SGLang."""
    from vortex_core.serving.launch import PYTHON, check_environment, interpreter

    python = interpreter()
    try:
        return Finding("ok", "sglang", f"{check_environment(python)} in {python}")
    except VortexError as error:
        level: Level = "warning" if os.environ.get(PYTHON) else "info"
        return Finding(level, "sglang", error.message, error.remedy)


def _hub() -> Finding:
    host = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").split("//")[-1].split("/")[0]
    name, _, port = host.partition(":")
    try:
        socket.create_connection((name, int(port or 443)), timeout=3).close()
    except (OSError, ValueError):
        return Finding("info", "hub", f"{host} is not reachable; models come from the cache or a directory")
    return Finding("ok", "hub", f"{host} is reachable")


def sandbox(deadline: float = 3.0) -> Iterator[Finding]:
    """Have a locked child try to get out, run hostile flows in the jail and a good one beside them."""
    from vortex_core import library
    from vortex_core.sandbox.load import trace_source

    yield _walls()
    for what, source in HOSTILE.items():
        try:
            trace_source(source, deadline=deadline)
        except VortexError as error:
            yield Finding("ok", "sandbox", f"a flow that {what} is refused ({error.code})")
        else:
            yield Finding(
                "problem", "sandbox", f"a flow that {what} was accepted", "do not run campaigns here"
            )
    try:
        traced = trace_source(library.source("quest"))
    except VortexError as error:
        yield Finding("problem", "sandbox", f"a legal flow was refused: {error.code} {error.message}")
    else:
        agrees = traced.ir_hash == library.load("quest").ir_hash
        words = "traces a legal flow to its hash" if agrees else "traces a legal flow to another hash"
        yield Finding("ok" if agrees else "problem", "sandbox", words)


def _walls() -> Finding:
    from vortex_core.sandbox import kernel
    from vortex_core.sandbox.proof import prove

    try:
        proof = prove()
    except VortexError as error:
        return Finding("problem", "sandbox", error.message, error.remedy)
    remedy = "do not run programs of others here, campaigns with a model among them"
    if kernel.FILTER not in proof.walls:
        return Finding("problem", "sandbox", "no system-call filter can be installed", remedy)
    if proof.opened:
        return Finding("problem", "sandbox", f"a locked child could {', '.join(proof.opened)}", remedy)
    return Finding("ok", "sandbox", f"a locked child is refused everything; walls: {', '.join(proof.walls)}")


def import_names() -> Iterator[Finding]:
    """Whether other distributions claim our import names, and where each name leads."""
    claims = metadata.packages_distributions()
    root = Path(__file__).resolve().parents[2]
    for name in IMPORT_NAMES:
        others = sorted({d for d in claims.get(name, ()) if d.lower().replace("_", "-") != DISTRIBUTION})
        spec = importlib.util.find_spec(name)
        places = [Path(p).resolve() for p in (spec.submodule_search_locations or [])] if spec else []
        remedy = "install vortex-search in an environment of its own"
        if root / name not in places:
            yield Finding("problem", "imports", f"{name} is imported from {places}, not from {root}", remedy)
        elif others:
            words = f"{name} is also claimed by {', '.join(others)}"
            yield Finding("warning", "imports", words, remedy)
        else:
            yield Finding("ok", "imports", f"{name} is ours alone")
