"""Damaged programs end in a catalogued error or in a program that converts; nothing crashes."""

from __future__ import annotations

import random
import re

from tests.null.dialects.programs import BUNDLED, HEADER
from vortex_core.errors import VortexError
from vortex_core.sandbox.jail import run

NUMBERS = ("0", "1", "2", "3", "8", "16", "-1", "0.5", "1e300", "10**400", "128")


def mutant(rng: random.Random) -> str:
    """A program with a few names, numbers or lines exchanged."""
    body = rng.choice(list(BUNDLED.values()))[len(HEADER) :]
    words = re.findall(r"\b[A-Za-z_]\w*", "".join(BUNDLED.values()))
    for _ in range(rng.randint(1, 3)):
        kind = rng.random()
        if kind < 0.25:
            lines = body.split("\n")
            i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
            lines[i], lines[j] = lines[j], lines[i]
            body = "\n".join(lines)
            continue
        found = list(re.finditer(r"[A-Za-z_]\w*" if kind < 0.75 else r"(?<!\w)\d+\.?\d*", body))
        if found:
            m = rng.choice(found)
            body = body[: m.start()] + rng.choice(words if kind < 0.75 else NUMBERS) + body[m.end() :]
    return HEADER + body


def test_damaged_programs_are_refused_or_converted() -> None:
    rng, converted, codes = random.Random(0), 0, set()
    for _ in range(250):
        source = mutant(rng)
        try:
            traced = run(source, "mutant.py", {"block_size": 64})
        except VortexError as error:
            codes.add(error.code)
            continue
        converted += 1
        assert run(traced.source, "converted.py").key == traced.key
    assert converted >= 10
    assert {"VF005", "VF082", "VF083", "VF085"} <= codes
