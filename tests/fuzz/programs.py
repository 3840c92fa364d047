"""Random well-typed programs: legal, canonical, written and read back, and selected alike by every evaluation."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

from agents.grammar import random_program
from tests.fuzz.rewrite import rewrite
from tests.fuzz.selections import GEOMETRY, KNOBS, Reference, Torch64, data
from vortex_core.compiler.oracle import OracleFlow
from vortex_core.compiler.torch_backend import TorchFlow
from vortex_core.flow.emit import emit
from vortex_core.flow.jail import run
from vortex_core.ir.program import Program
from vortex_core.ir.verify import verify

EXACT = 1e-9  # fp64 against fp64: only the order of operations differs
SINGLE = 2e-3  # fp32 through states of 8 bits and more, relative to the largest score


def check(seed: int, counts: Counter[str]) -> list[str]:
    """Everything about one program; what is wrong, in words."""
    rng = random.Random(seed)
    smooth = seed % 3 == 0
    program = random_program(rng, operations=rng.choice((4, 8, 14, 20)), smooth=smooth)
    wrong: list[str] = []

    def expect(condition: bool, what: str) -> None:
        counts[what] += 1
        if not condition:
            wrong.append(f"program {seed}: {what}")

    verify(program)
    canonical = program.canonical()
    verify(canonical)
    expect(canonical.canonical() == canonical, "canonicalising twice is canonicalising once")
    expect(Program.from_json(program.to_json()).ir_hash == program.ir_hash, "JSON keeps the hash")
    for text in (emit(program, KNOBS, "original", "?"), emit(canonical, KNOBS, "canonical", "?")):
        again = run(text, "emitted.py")
        expect(
            (again.ir_hash, again.knobs) == (program.ir_hash, KNOBS),
            "emitted source traces to the same program",
        )
    for _ in range(3):
        other = rewrite(program, rng)
        if other is not None:
            verify(other)
            expect(other.ir_hash == program.ir_hash, "equivalent rewrites hash equal")

    d = data(seed, coarse=seed % 2 == 1, steps=1)
    if program.is_request_local:
        d = data(seed, coarse=seed % 2 == 1, steps=2)
    reference = Reference(program, d)
    found = reference.disagreement(OracleFlow(canonical, KNOBS, GEOMETRY), EXACT)
    expect(not found, "the canonical form selects the same pages")
    expect(
        not (found := reference.disagreement(Torch64(canonical, KNOBS, GEOMETRY), EXACT)),
        "torch in fp64 agrees",
    )
    if smooth and not any(s.dtype in ("int4", "bits") for s in program.states):
        found = reference.disagreement(TorchFlow(canonical, KNOBS, GEOMETRY), SINGLE)
        expect(not found, "torch in fp32 agrees on continuous programs")
    if wrong and found:
        wrong[-1] += f" ({found})"
    counts["request-local"] += program.is_request_local
    return wrong


def tampered(seed: int) -> tuple[Program, Program] | None:
    """A program and one that differs in one operator, or None where nothing could be changed."""
    rng = random.Random(seed)
    program = random_program(rng, operations=8)
    swaps = {
        "amax": "amin",
        "amin": "amax",
        "maximum": "minimum",
        "minimum": "maximum",
        "exp": "sigmoid",
        "lt": "le",
    }
    places = [i for i, n in enumerate(program.index.nodes) if n.op in swaps]
    if not places:
        return None
    at = rng.choice(places)
    nodes = list(program.index.nodes)
    nodes[at] = replace(nodes[at], op=swaps[nodes[at].op])
    return program, replace(program, index=replace(program.index, nodes=tuple(nodes)))
