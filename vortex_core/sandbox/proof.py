"""Proof that the jail's door is closed: a locked child tries what a hostile program would, and says what worked."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass

from vortex_core.ir import mistakes
from vortex_core.sandbox import kernel
from vortex_core.sandbox.process import ask, command

_PTRACE = {"x86_64": 101, "aarch64": 117}


@dataclass(frozen=True)
class Proof:
    """What a locked child found.

    Attributes:
        walls: what holds it (`kernel.Locked`).
        opened: attempts that were not refused; none where the jail holds.
    """

    walls: tuple[str, ...]
    opened: tuple[str, ...]


def prove(deadline: float = 20.0) -> Proof:
    """Lock a child in and have it try to get out.

    Raises:
        VortexError: `VF095` if it cannot be started.
    """
    request = json.dumps({"parent": os.getpid()}).encode() + b"\n"
    said = ask(command(__name__), request, deadline=deadline, lines=2)
    if len(said.lines) != 2 or said.code != 0:
        why = said.errors.decode(errors="replace").strip().splitlines()[-1:] or [said.ended or str(said.code)]
        raise mistakes.NO_JAIL.error(why=f"the locked child did not answer: {why[0]}")
    return Proof(tuple(json.loads(said.lines[0])["walls"]), tuple(json.loads(said.lines[1])))


def attempts(parent: int) -> dict[str, Callable[[], object]]:
    """What is tried, by name; each raises OSError where it is refused."""
    libc = ctypes.CDLL(None, use_errno=True)

    def call(*arguments: int) -> None:
        if libc.syscall(*arguments) < 0:
            raise OSError(ctypes.get_errno(), "refused")

    return {
        "read a file": lambda: os.open("/proc/self/exe", os.O_RDONLY),
        "write a file": lambda: os.open("/dev/null", os.O_WRONLY),
        "look at a file": lambda: os.stat("/"),
        "list a folder": lambda: os.listdir("/"),
        "make a folder": lambda: os.mkdir("/proc/vortex-proof"),
        "open a socket": lambda: socket.socket(),
        "start a process": _fork,
        "run a program": lambda: os.execv("/bin/true", ["true"]),
        "signal a process": lambda: os.kill(parent, 0),
        "debug a process": lambda: call(_PTRACE[kernel.abi() or "x86_64"], 0, 0, 0, 0),
        "make a pipe": lambda: os.pipe(),
        "copy a descriptor": lambda: os.dup(1),
        "raise a limit": lambda: resource.setrlimit(resource.RLIMIT_CPU, (1, 1)),
    }


def _fork() -> None:
    if os.fork() == 0:
        os._exit(0)


def main() -> None:
    """The child: locks itself in, then says what holds it and which attempts worked."""
    parent = json.loads(sys.stdin.buffer.readline())["parent"]
    tried = attempts(parent)
    locked = kernel.lock_down(parent)
    print(json.dumps({"walls": locked.walls}), flush=True)
    opened = []
    for name, attempt in tried.items():
        try:
            attempt()
        except (OSError, ValueError):  # Python says ValueError for a limit
            continue
        opened.append(name)
    print(json.dumps(opened), flush=True)
