"""From source to program. Untrusted source is traced in a jailed subprocess; only verified IR comes back."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vortex_core.errors import VortexError
from vortex_core.flow.emit import emit
from vortex_core.flow.trace import Traced
from vortex_core.ir import mistakes
from vortex_core.ir.params import Values
from vortex_core.sandbox.jail import MAX_CPU_SECONDS

DEADLINE_SECONDS = 30.0  # wall; `jail.MAX_CPU_SECONDS` of computing ends it sooner
_MAX_ANSWER = 40 << 20  # mostly learned values
_ROOT = str(Path(__file__).resolve().parents[2])
_START = f"import sys; sys.path.insert(0, {_ROOT!r}); from vortex_core.sandbox.jail import main; main()"


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

    Args:
        source: a module that defines one vFlow class, or a program in one of `vortex_core.dialects`.
        file: shown in errors.
        name: overrides the flow's own name.
        deadline: wall seconds, after which the whole process group is killed.
        options: settings that go with a dialect's program.
        params: learned values from beside the flow (`read_params`).

    Raises:
        VortexError: a catalogued `VF...` error: the author's mistake, a timeout (`VF006`), too much memory
            (`VF007`) or a dead tracer (`VF009`).
    """
    values = {n: v.to_json() for n, v in (params or {}).items()}
    request = json.dumps({"source": source, "file": file, "options": options, "params": values}).encode()
    # -S: the child needs the standard library only; -I: nothing of the user's environment reaches it.
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", "-B", "-c", _START],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={},
        cwd="/",
        start_new_session=True,
    )
    try:
        out, err = child.communicate(request, timeout=deadline)
    except subprocess.TimeoutExpired:
        raise mistakes.TIMEOUT.error(seconds=deadline) from None
    finally:
        _kill_group(child)
    if child.returncode != 0:
        raise _death(child.returncode, err)
    if len(out) > _MAX_ANSWER:
        raise mistakes.TOO_LARGE.error(count=len(out), what="bytes of IR", limit=_MAX_ANSWER)
    try:
        answer = json.loads(out)
    except ValueError:
        raise mistakes.TRACER_DIED.error(why="a malformed answer") from None
    if "error" in answer:
        raise VortexError.from_json(answer["error"])
    traced = Traced.from_json(answer["traced"])
    return traced if name is None else replace(traced, name=name)


def trace_file(path: str | Path, *, name: str | None = None, deadline: float = DEADLINE_SECONDS) -> Traced:
    """Trace a file's source in the jail, with the learned values of a .npz or .safetensors file of its name.

    Raises:
        VortexError: `VF000` if it cannot be read, else as `trace_source`.
    """
    try:
        source = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise mistakes.UNREADABLE.error(path=path, why=reason) from None
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


def write_flow(path: str | Path, traced: Traced) -> list[Path]:
    """Write a flow so that `trace_file` reads the same candidate: source, and learned values beside it.

    Args:
        path: the `.py` file; learned values go to the `.safetensors` file of its name.
        traced: the flow; what is written is its canonical program.

    Returns:
        The files written.
    """
    path, program = Path(path), traced.program
    text = emit(program, traced.knobs, traced.name, traced.doc, beside=bool(program.params))
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
    from safetensors.numpy import load_file

    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        with np.load(path, allow_pickle=False) as found:
            return dict(found)
    except (OSError, ValueError, TypeError, KeyError, zipfile.BadZipFile, SafetensorError) as error:
        raise mistakes.BAD_PARAM.error(name=path.name, why=f"unreadable: {error}") from None


def _values(name: str, array: Any) -> Values:
    if array.dtype.kind not in "fiu":
        raise mistakes.BAD_PARAM.error(name=name, why=f"an array of {array.dtype}")
    values = Values(tuple(array.shape), array.astype("<f4").tobytes())
    values.check(name)
    return values


def _kill_group(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _death(code: int, err: bytes) -> VortexError:
    if code == -signal.SIGXCPU:
        return mistakes.TIMEOUT.error(seconds=MAX_CPU_SECONDS)
    text = err.decode(errors="replace").strip().splitlines()
    if "MemoryError" in (text[-1] if text else ""):
        return mistakes.OUT_OF_MEMORY.error(megabytes=512)
    if code < 0:
        return mistakes.TRACER_DIED.error(why=f"signal {signal.Signals(-code).name}")
    return mistakes.TRACER_DIED.error(why=f"exit status {code}: {text[-1][:200] if text else 'no message'}")
