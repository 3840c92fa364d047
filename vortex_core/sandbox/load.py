"""From source to program. Untrusted source is traced in a jailed subprocess; only verified IR comes back."""

from __future__ import annotations

import io
import json
import logging
import os
import platform
import signal
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vortex_core.errors import VortexError
from vortex_core.files import read_bytes, read_text
from vortex_core.flow.emit import emit
from vortex_core.flow.trace import Traced
from vortex_core.flow.vflow import check_name, plain_name
from vortex_core.ir import mistakes
from vortex_core.ir.flow import Flow
from vortex_core.ir.params import Values
from vortex_core.sandbox import answer, kernel, process
from vortex_core.sandbox.allowlist import MAX_CHARACTERS
from vortex_core.sandbox.process import Spoken, ask, command
from vortex_core.text import visible

DEADLINE_SECONDS = 30.0  # wall; `kernel.MAX_CPU_SECONDS` of computing ends it sooner
UNFILTERED = "VORTEX_JAIL_WITHOUT_FILTER"
_CHILD = command("vortex_core.sandbox.jail")
_log = logging.getLogger(__name__)


def trace_source(
    source: str,
    file: str = "<flow>",
    *,
    name: str | None = None,
    deadline: float = DEADLINE_SECONDS,
    options: dict[str, Any] | None = None,
    params: Mapping[str, Values] | None = None,
) -> Traced:
    """Trace untrusted source in the jail.

    The child's string hashes have a fixed seed, so the order of sets is one. A source in which order or addresses
    could matter at all (`allowlist.is_settled`) is traced again under another seed and must be the same program.

    Args:
        source: a module that defines one vFlow class, or a program in one of `vortex_core.dialects`.
        file: shown in errors.
        name: overrides the flow's own name.
        deadline: wall seconds, after which the whole process group is killed.
        options: settings that go with a dialect's program.
        params: learned values from beside the flow (`read_params`).

    Returns:
        The flow; its `source` is `source`, or for a dialect's program the equivalent vFlow source.

    Raises:
        VortexError: a catalogued `VF...` error: the author's mistake, a timeout (`VF006`), too much memory
            (`VF007`), a dead or lying tracer (`VF009`), another program the second time (`VF097`), a machine
            without a jail (`VF095`) or with less room than the jail gives (`VF096`).
    """
    if len(source) > MAX_CHARACTERS:
        raise mistakes.TOO_LARGE.error(count=len(source), what="characters", limit=MAX_CHARACTERS)
    unfiltered = os.environ.get(UNFILTERED) == "1"
    if unfiltered:
        _log.warning("%s=1: untrusted source may run without a system-call filter", UNFILTERED)
    request = answer.request(source, file, options, params or {}, unfiltered)
    traced, settled = _trace(request, source, file, deadline, 0)
    if not settled:
        first = f"{traced.name} {traced.key}"
        try:
            again, _ = _trace(request, source, file, deadline, 1)
        except VortexError as error:
            if error.code in {m.code for m in mistakes.OF_THE_MACHINE}:
                raise
            raise mistakes.NOT_THE_SAME.error(error.location, first=first, second=error.code) from None
        if (again.name, again.key) != (traced.name, traced.key):
            raise mistakes.NOT_THE_SAME.error(first=first, second=f"{again.name} {again.key}")
    return traced if name is None else replace(traced, name=check_name(name))


def _trace(request: bytes, source: str, file: str, deadline: float, seed: int) -> tuple[Traced, bool]:
    """One child's program, and whether no other child could give another."""
    try:
        said = ask(_CHILD, request, deadline=deadline, lines=3, values=answer.value_bytes, seed=seed)
    except OSError as error:  # no room for another process
        raise mistakes.NO_JAIL.error(why=f"the tracer did not start: {error.strerror}") from None
    machine = _ready(said)
    try:
        if said.ended == "late":
            raise mistakes.TIMEOUT.error(seconds=deadline)
        if said.ended:
            raise mistakes.TRACER_DIED.error(why=f"more than {process.MAX_TEXT} bytes of answer or errors")
        if said.code != 0:
            raise _death(said.code, said.errors)
        if len(said.lines) == 2:  # it did not come as far as to be read
            said.lines.insert(1, b'{"dialect": null, "settled": true}')
        if len(said.lines) != 3:
            raise mistakes.TRACER_DIED.error(why="no answer")
        kind = json.loads(said.lines[1])  # said before any foreign line ran
        traced = answer.Heard(source, file).read(said.lines[2], said.values, kind["dialect"])
    except VortexError as error:
        raise _blame(error, machine) from None
    return traced, kind["settled"]


def _ready(said: Spoken) -> tuple[int, int]:
    """Bytes and seconds the child has, once it is locked in. What it says until then is ours, not the program's."""
    if not said.lines:
        why = said.ended or _last_line(said.errors) or f"exit status {said.code}"
        raise mistakes.NO_JAIL.error(why=f"the tracer did not start: {why}")
    first = json.loads(said.lines[0])
    if kernel.FILTER not in first["walls"] and len(said.lines) == 1 and not said.ended and said.code == 0:
        where = f"{sys.platform}, {getattr(sys.implementation, '_multiarch', '') or platform.machine()}"
        raise mistakes.NO_JAIL.error(why=f"no system-call filter can be installed ({where})")
    return first["memory"], first["seconds"]


def _blame(error: VortexError, machine: tuple[int, int]) -> VortexError:
    """The error, or the machine's if the flow had less than every flow may use."""
    memory, seconds = machine
    if error.code == mistakes.OUT_OF_MEMORY.code and memory < kernel.MAX_MEMORY:
        have, want = f"{memory >> 20} MiB", f"{kernel.MAX_MEMORY >> 20} MiB"
        return mistakes.MACHINE_LIMIT.error(have=have, want=want, what="memory")
    if error.code == mistakes.TIMEOUT.code and seconds < kernel.MAX_CPU_SECONDS:
        have, want = f"{seconds} s", f"{kernel.MAX_CPU_SECONDS} s"
        return mistakes.MACHINE_LIMIT.error(have=have, want=want, what="computing")
    return error


def trace_file(path: str | Path, *, name: str | None = None, deadline: float = DEADLINE_SECONDS) -> Traced:
    """Trace a file's source in the jail, with the learned values of a .npz or .safetensors file of its name.

    Raises:
        VortexError: `VF000` if it cannot be read, else as `trace_source`.
    """
    try:
        source = read_text(path, 4 * MAX_CHARACTERS)
    except OSError as error:
        raise mistakes.UNREADABLE.error(path=path, why=error.strerror) from None
    return trace_source(source, str(path), name=name, deadline=deadline, params=read_params(path))


def read_params(path: str | Path) -> dict[str, Values]:
    """Learned values beside the flow at `path`: `flow.safetensors` or `flow.npz` for `flow.py`, none if neither.

    Raises:
        VortexError: `VF065` for a file that cannot be read or holds anything but finite numbers.
    """
    for suffix in (".safetensors", ".npz"):
        beside = Path(path).with_suffix(suffix)
        if beside.exists():
            return {name: _values(name, x) for name, x in _arrays(beside).items()}
    return {}


def write_flow(path: str | Path, flow: Flow) -> list[Path]:
    """Write a flow so that `trace_file` reads the same candidate: source, and learned values beside it.

    Args:
        path: the `.py` file; learned values go to the `.safetensors` file of its name.
        flow: what is written is its canonical program, under its name as a flow may be named.

    Returns:
        The files written.
    """
    path, program = Path(path), flow.program
    text = emit(program, flow.knobs, plain_name(flow.name), flow.doc, beside=bool(program.params))
    path.write_text(text, encoding="utf-8")
    if not program.params:
        return [path]
    import numpy as np
    from safetensors.numpy import save_file

    beside = path.with_suffix(".safetensors")
    save_file(
        {p.name: np.frombuffer(p.values.data, "<f4").reshape(p.values.shape) for p in program.params}, beside
    )
    return [path, beside]


def _arrays(path: Path) -> dict[str, Any]:
    import numpy as np
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        data = read_bytes(path, 2 * answer.MAX_VALUE_BYTES)
        if path.suffix == ".safetensors":
            return dict(load(data))
        with zipfile.ZipFile(io.BytesIO(data)) as archive:  # what it unpacks to, before it is unpacked
            if sum(member.file_size for member in archive.infolist()) > 4 * answer.MAX_VALUE_BYTES:
                raise ValueError("it unpacks to more than a flow's learned values may take")
        with np.load(io.BytesIO(data), allow_pickle=False) as found:
            return dict(found)
    except (OSError, ValueError, TypeError, KeyError, zipfile.BadZipFile, SafetensorError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise mistakes.BAD_PARAM.error(name=path.name, why=f"unreadable: {why}") from None


def _values(name: str, array: Any) -> Values:
    if array.dtype.kind not in "fiu":
        raise mistakes.BAD_PARAM.error(name=name, why=f"an array of {array.dtype}")
    values = Values(tuple(array.shape), array.astype("<f4").tobytes())
    values.check(name)
    return values


def _death(code: int, err: bytes) -> VortexError:
    if code in (-signal.SIGXCPU, -signal.SIGALRM):
        return mistakes.TIMEOUT.error(seconds=kernel.MAX_CPU_SECONDS)
    last = _last_line(err)
    if "MemoryError" in last:
        return mistakes.OUT_OF_MEMORY.error(megabytes=kernel.MAX_MEMORY >> 20)
    if code < 0:
        return mistakes.TRACER_DIED.error(why=f"signal {signal.Signals(-code).name}")
    return mistakes.TRACER_DIED.error(why=f"exit status {code}: {last or 'no message'}")


def _last_line(err: bytes) -> str:
    lines = err[-4000:].decode(errors="replace").strip().splitlines()
    return visible(lines[-1], 200) if lines else ""
