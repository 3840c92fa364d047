"""The jailed tracer: the only place where untrusted Python runs.

Started by `load.py` as a fresh interpreter in its own process group, with an empty environment. Before it
looks at the source it gives up, for good, everything but computing and answering on its pipe: resource
limits, and on Linux a seccomp filter that refuses every system call outside a short list (no files, sockets,
processes, signals).
"""

from __future__ import annotations

import ctypes
import json
import platform
import resource
import struct
import sys
import warnings
from collections.abc import Mapping
from typing import Any

from vortex_core import dialects
from vortex_core.errors import Location, VortexError
from vortex_core.flow import facade
from vortex_core.flow.trace import Traced, trace
from vortex_core.flow.vflow import vFlow
from vortex_core.ir import mistakes
from vortex_core.ir.params import Values
from vortex_core.sandbox import allowlist

MAX_MEMORY = 512 << 20
# What a flow may compute. The wall deadline is longer, so that a busy machine fails no flow.
MAX_CPU_SECONDS = 10
_MODULE = "flow"

# read write close fstat lseek mmap mprotect munmap brk rt_sigaction rt_sigprocmask rt_sigreturn mremap
# madvise getpid exit sigaltstack gettid futex clock_gettime clock_getres exit_group getrandom sched_yield
# restart_syscall
_ALLOWED = {
    "x86_64": (
        0xC000003E,
        (
            0,
            1,
            3,
            5,
            8,
            9,
            10,
            11,
            12,
            13,
            14,
            15,
            25,
            28,
            39,
            60,
            131,
            186,
            202,
            228,
            229,
            231,
            318,
            24,
            219,
        ),
    ),
    "aarch64": (
        0xC00000B7,
        (
            63,
            64,
            57,
            80,
            62,
            222,
            226,
            215,
            214,
            134,
            135,
            139,
            216,
            233,
            172,
            93,
            132,
            178,
            98,
            113,
            114,
            94,
            278,
            124,
            128,
        ),
    ),
}


def has_seccomp() -> bool:
    """Whether this platform has the system-call filter; without it the jail is allow-list and limits only."""
    return sys.platform == "linux" and platform.machine() in _ALLOWED


def lock_down() -> None:
    """Give up everything but computing. Irreversible."""
    for limit, value in (
        (resource.RLIMIT_AS, MAX_MEMORY),
        (resource.RLIMIT_CPU, MAX_CPU_SECONDS),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        # The hard limit of CPU time comes later: at the soft one the process ends by SIGXCPU, which says why.
        hard = value + 5 if limit == resource.RLIMIT_CPU else value
        resource.setrlimit(limit, (value, hard))
    if not has_seccomp():
        return
    arch, calls = _ALLOWED[platform.machine()]
    deny = 0x00050000 | 1  # SECCOMP_RET_ERRNO | EPERM
    ops: list[tuple[int, int, int, int]] = [
        (0x20, 0, 0, 4),  # load the architecture
        (0x15, 1, 0, arch),
        (0x06, 0, 0, deny),
        (0x20, 0, 0, 0),  # load the call number
    ]
    for i, call in enumerate(calls):
        ops.append((0x15, len(calls) - i, 0, call))  # equal: jump to the allowing return
    ops += [(0x06, 0, 0, deny), (0x06, 0, 0, 0x7FFF0000)]
    code = b"".join(struct.pack("HBBI", *op) for op in ops)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HxxxxxxP", len(ops), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0) != 0 or libc.prctl(22, 2, ctypes.c_char_p(program), 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "seccomp filter refused by the kernel")


def run(
    source: str,
    file: str,
    options: dict[str, Any] | None = None,
    params: Mapping[str, Values] | None = None,
) -> Traced:
    """Check, execute and trace one flow's source in this process (jailed or trusted).

    Args:
        source: a vFlow module, or a program in one of `vortex_core.dialects`.
        file: shown in errors.
        options: settings that go with a dialect's program.
        params: learned values from beside the flow.

    Raises:
        VortexError: every way it can be wrong.
    """
    name = dialects.detect(source)
    dialect = None if name is None else dialects.load(name)
    tree = allowlist.parse(source, file, allowlist.FLOW if dialect is None else dialect.RULES)
    registry: dict[str, type] = {}
    importer = facade.importer if dialect is None else dialect.importer(registry)
    namespace: dict[str, Any] = {"__name__": _MODULE, "__builtins__": allowlist.safe_builtins(importer)}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is wrong is said once, with a code
            code = compile(tree, file, "exec")
        exec(code, namespace)
        if dialect is not None:
            foreign: Traced = dialect.read(namespace, registry, options, _MODULE)
            return foreign
        flows = [
            v
            for v in namespace.values()
            if isinstance(v, type) and issubclass(v, vFlow) and v.__module__ == _MODULE
        ]
        parents = {base for cls in flows for base in cls.__mro__[1:]}
        flows = [cls for cls in dict.fromkeys(flows) if cls not in parents]
        if len(flows) != 1:
            raise mistakes.NO_FLOW.error(count=len(flows))
        return trace(flows[0], source, file, params)
    except VortexError as error:
        if error.location is None or not error.location.text:
            error.location = _locate(error, source, file, error.location)
        raise
    except MemoryError:
        raise mistakes.OUT_OF_MEMORY.error(megabytes=MAX_MEMORY >> 20) from None
    except Exception as error:  # noqa: BLE001  whatever foreign code raises is the author's mistake
        where = _locate(error, source, file, None)
        why = str(error)[:300].encode("utf-8", "replace").decode()
        raise mistakes.USER_EXCEPTION.error(where, kind=type(error).__name__, why=why) from None


def _locate(error: BaseException, source: str, file: str, known: Location | None) -> Location | None:
    """The author's innermost line on the way to `error`."""
    line = known.line if known is not None else 0
    frame = error.__traceback__
    while frame is not None and known is None:
        if frame.tb_frame.f_code.co_filename == file:
            line = frame.tb_lineno
        frame = frame.tb_next
    return allowlist.line_of(source, file, line) if line else known


_WARM_UP = """
from vortex_core import vFlow, ops
class W(vFlow):
    def create_cache(self, page): return {"c": page.state(dim=page.head_dim), "r": page.state(carried=True)}
    def forward_cache(self, page): return {"c": page.k.mean("token")}
    def forward_indexer(self, q, cache):
        s = (q * cache["c"]).sum("dim").max("head")
        cache["r"] = s
        return ops.topk(s.exp() + cache["r"])
"""


def main() -> None:
    """Child process: `{source, file, options, params}` on standard input, `{traced}` or `{error}` on output."""
    request = json.load(sys.stdin)
    run(_WARM_UP, "<warm-up>")  # every lazy import happens before the door closes
    if (name := dialects.detect(request["source"])) is not None:
        dialect = dialects.load(name)
        run(dialect.WARM_UP, "<warm-up>")
    _answer_error(mistakes.TRACER_DIED.error(why="?"))
    lock_down()
    try:
        params = {n: Values.from_json(n, v) for n, v in request.get("params", {}).items()}
        traced = run(request["source"], request["file"], request.get("options"), params)
        answer = {"traced": traced.to_json()}
    except VortexError as error:
        answer = _answer_error(error)
    except (RecursionError, MemoryError):
        answer = _answer_error(mistakes.OUT_OF_MEMORY.error(megabytes=MAX_MEMORY >> 20))
    sys.stdout.write(json.dumps(answer))
    sys.stdout.flush()


def _answer_error(error: VortexError) -> dict[str, Any]:
    return {"error": error.to_json()}
