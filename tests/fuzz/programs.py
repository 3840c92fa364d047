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
from vortex_core.ir.canonical import canonicalise
from vortex_core.ir.program import Program
from vortex_core.ir.verify import verify
from vortex_core.sandbox.jail import run

EXACT = 1e-9  # fp64 against fp64: only the order of operations differs
SINGLE = 2e-3  # fp32 through states of 8 bits and more, relative to the largest score


def by_dense_mass(program: Program) -> Program:
    """The program with the mass of a dense layer in this step wherever it reads that of the step before."""
    nodes = (replace(n, op="dense_mass") if n.op == "mass" else n for n in program.index.nodes)
    return replace(program, index=replace(program.index, nodes=tuple(nodes)))


def check(seed: int, counts: Counter[str]) -> list[str]:
    """Everything about one program; what is wrong, in words."""
    rng = random.Random(seed)
    smooth = seed % 3 == 0
    program = random_program(rng, operations=rng.choice((4, 8, 14, 20)), smooth=smooth)
    if seed % 4 == 1:
        program = by_dense_mass(program)
    wrong: list[str] = []

    def expect(condition: bool, what: str, found: str = "") -> None:
        counts[what] += 1
        if not condition:
            wrong.append(f"program {seed}: {what}" + (f" ({found})" if found else ""))

    verify(program)
    canonical = program.canonical()
    verify(canonical)
    expect(canonicalise(canonical) == canonical, "canonicalising twice is canonicalising once")
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
    expect(not found, "the canonical form selects the same pages", found)
    found = reference.disagreement(Torch64(canonical, KNOBS, GEOMETRY), EXACT)
    expect(not found, "torch in fp64 agrees", found)
    other = tampered(program, rng)
    if other is not None and other.ir_hash != program.ir_hash:
        counts["another operator: another hash"] += 1
    elif other is not None:
        counts["another operator: the same hash"] += 1
        found = reference.disagreement(OracleFlow(other, KNOBS, GEOMETRY), EXACT)
        expect(not found, "what hashes equal selects the same pages", found)
    if smooth and not any(s.dtype in ("int4", "int3", "int2", "bits") for s in program.states):
        found = reference.disagreement(TorchFlow(canonical, KNOBS, GEOMETRY), SINGLE)
        expect(not found, "torch in fp32 agrees on continuous programs", found)
    counts["request-local"] += program.is_request_local
    return wrong


SWAPS = {
    "amax": "amin",
    "amin": "amax",
    "maximum": "minimum",
    "minimum": "maximum",
    "exp": "sigmoid",
    "sum": "amax",
    "add": "sub",
    "lt": "le",
}


def tampered(program: Program, rng: random.Random) -> Program | None:
    """The program with one operator exchanged, or None where nothing could be changed."""
    places = [i for i, n in enumerate(program.index.nodes) if n.op in SWAPS]
    if not places:
        return None
    at = rng.choice(places)
    nodes = list(program.index.nodes)
    nodes[at] = replace(nodes[at], op=SWAPS[nodes[at].op])
    return replace(program, index=replace(program.index, nodes=tuple(nodes)))
