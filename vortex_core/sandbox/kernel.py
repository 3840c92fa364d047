"""The second wall: what the operating system takes from the tracer before it looks at the source.

A filter of system calls (seccomp) is the one thing that must be there: without it untrusted source does not run. What
else the kernel has is taken as well, so that no single mistake opens the jail: no file can be reached (landlock), no
network, process or mount of the machine is in sight (namespaces), no privileges are held (another user, no
capabilities), nothing outlives the parent or the clock.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import struct
import sys
from dataclasses import dataclass

MAX_MEMORY = 512 << 20
# What a flow may compute. The wall deadline is longer, so that a busy machine fails no flow.
MAX_CPU_SECONDS = 10
# The orphan of a killed parent ends by the kernel's word; this clock is for kernels that forget it.
MAX_WALL_SECONDS = 120
FILTER = "system calls"

_NOBODY = 65534
_EPERM = 0x00050000 | 1  # SECCOMP_RET_ERRNO
_ALLOW = 0x7FFF0000
_SET_DEATH_SIGNAL, _SET_SECCOMP, _SET_NO_NEW_PRIVS, _CAPBSET_DROP = 1, 22, 38, 24
_NAMESPACES = 0x40000000 | 0x08000000 | 0x04000000 | 0x00020000  # network, IPC, host name, mounts
_USER_NAMESPACE = 0x10000000  # what a process without privileges needs for the others
_LANDLOCK_CREATE, _LANDLOCK_RESTRICT = 444, 446
_LANDLOCK_FILES = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # bits of file access known to each version

# read write close fstat lseek mmap mprotect munmap brk rt_sigaction rt_sigprocmask rt_sigreturn mremap
# madvise getpid exit sigaltstack gettid futex clock_gettime clock_getres exit_group getrandom sched_yield
# restart_syscall
_CALLS: dict[str, tuple[int, tuple[int, ...]]] = {
    "x86_64": (
        0xC000003E,
        (0, 1, 3, 5, 8, 9, 10, 11, 12, 13, 14, 15, 25, 28, 39, 60, 131, 186, 202, 228, 229, 231, 318, 24, 219),
    ),
    "aarch64": (
        0xC00000B7,
        (63, 64, 57, 80, 62, 222, 226, 215, 214, 134, 135, 139, 216, 233, 172, 93, 132, 178, 98, 113, 114, 94, 278,
         124, 128),
    ),
}  # fmt: skip
_CAPSET = {"x86_64": 126, "aarch64": 91}


def abi() -> str | None:
    """The instruction set this process was built for, if a filter is written for it.

    The build says so, not `uname`: a 64-bit process keeps its system calls under a 32-bit personality.
    """
    built = getattr(sys.implementation, "_multiarch", "")
    if sys.platform != "linux" or struct.calcsize("P") != 8 or sys.byteorder != "little":
        return None
    machine = built.split("-")[0] if built else _machine_of_executable()
    return machine if machine in _CALLS and not built.endswith("x32") else None


def _machine_of_executable() -> str:
    try:
        with open(sys.executable, "rb") as file:
            head = file.read(20)
    except OSError:
        return ""
    if head[:5] != b"\x7fELF\x02":
        return ""
    return {62: "x86_64", 183: "aarch64"}.get(int.from_bytes(head[18:20], "little"), "")


@dataclass
class Locked:
    """What a process gave up.

    Attributes:
        walls: what is in force: `system calls`, `files`, `namespaces`, `user`, `parent`. Limits always are.
        memory: bytes of address space left to it.
        seconds: of computing left to it.
    """

    walls: list[str]
    memory: int
    seconds: int


def lock_down(parent: int | None = None) -> Locked:
    """Give up everything but computing and the open pipes. Irreversible.

    Args:
        parent: process whose death ends this one; None leaves that out.
    """
    found = Locked([], *limit_resources())
    signal.alarm(MAX_WALL_SECONDS)
    if sys.platform != "linux":
        return found
    libc = ctypes.CDLL(None, use_errno=True)
    # Many machines and containers refuse this: then the other walls stand alone.
    if libc.unshare(_NAMESPACES | (_USER_NAMESPACE if os.geteuid() else 0)) == 0:
        found.walls.append("namespaces")
    if _drop_privileges(libc):
        found.walls.append("user")
    if libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return found
    # After the change of user, which clears it.
    if parent is not None and libc.prctl(_SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0) == 0:
        if os.getppid() != parent:
            os._exit(1)  # it died in the meantime
        found.walls.append("parent")
    if _forbid_files(libc):
        found.walls.append("files")
    if _filter_calls(libc):
        found.walls.append(FILTER)
    return found


def limit_resources() -> tuple[int, int]:
    """Take our limits, or the machine's own where they are lower; returns bytes of memory and seconds left."""
    for kind, value in (
        (resource.RLIMIT_AS, MAX_MEMORY),
        (resource.RLIMIT_CPU, MAX_CPU_SECONDS),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 16),
    ):
        # The hard limit of CPU time comes later: at the soft one the process ends by SIGXCPU, which says why.
        wanted = value + 5 if kind == resource.RLIMIT_CPU else value
        hard = least(wanted, resource.getrlimit(kind)[1])
        try:
            resource.setrlimit(kind, (least(value, hard), hard))
        except ValueError:  # macOS has no limit on address space; it has no filter either
            if sys.platform == "linux":
                raise
    return (
        least(MAX_MEMORY, resource.getrlimit(resource.RLIMIT_AS)[0]),
        least(MAX_CPU_SECONDS, resource.getrlimit(resource.RLIMIT_CPU)[0]),
    )


def least(ours: int, theirs: int) -> int:
    """The lower of two limits, where -1 is none."""
    return ours if theirs == resource.RLIM_INFINITY else min(ours, theirs)


def _drop_privileges(libc: ctypes.CDLL) -> bool:
    """Become nobody if this is root, and hold no capabilities (a new user namespace gives all of them)."""
    for capability in range(64):
        libc.prctl(_CAPBSET_DROP, capability, 0, 0, 0)
    if os.geteuid() == 0:
        try:
            os.setgroups([])
            os.setresgid(_NOBODY, _NOBODY, _NOBODY)
            os.setresuid(_NOBODY, _NOBODY, _NOBODY)
        except OSError:  # a namespace that knows no such user; what follows still holds
            pass
    machine = abi()
    if machine is None:
        return False
    header = ctypes.create_string_buffer(struct.pack("II", 0x20080522, 0))  # version 3, this process
    nothing = ctypes.create_string_buffer(bytes(24))
    return bool(libc.syscall(_CAPSET[machine], header, nothing) == 0 and os.geteuid() != 0)


def _forbid_files(libc: ctypes.CDLL) -> bool:
    """A landlock ruleset that handles every access to files, and the network where known, and allows none."""
    version = libc.syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return False
    files = (1 << _LANDLOCK_FILES.get(version, 16)) - 1
    attributes = struct.pack("QQQ", files, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = libc.syscall(
        _LANDLOCK_CREATE, ctypes.create_string_buffer(attributes), ctypes.c_size_t(size), 0
    )
    if ruleset < 0:
        return False
    done = libc.syscall(_LANDLOCK_RESTRICT, ruleset, 0) == 0
    os.close(ruleset)
    return bool(done)


def _filter_calls(libc: ctypes.CDLL) -> bool:
    """Install the filter and try it: `getppid` is not on the list."""
    machine = abi()
    if machine is None:
        return False
    arch, calls = _CALLS[machine]
    ops: list[tuple[int, int, int, int]] = [
        (0x20, 0, 0, 4),  # load the architecture
        (0x15, 1, 0, arch),
        (0x06, 0, 0, _EPERM),
        (0x20, 0, 0, 0),  # load the call number
    ]
    for i, call in enumerate(calls):
        ops.append((0x15, len(calls) - i, 0, call))  # equal: jump to the allowing return
    ops += [(0x06, 0, 0, _EPERM), (0x06, 0, 0, _ALLOW)]
    code = b"".join(struct.pack("HBBI", *op) for op in ops)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HxxxxxxP", len(ops), ctypes.addressof(buffer))
    if libc.prctl(_SET_SECCOMP, 2, ctypes.c_char_p(program), 0, 0) != 0:
        return False
    return os.getppid() == -1
