"""What must not change when code only moves: python -m benchmarks.fingerprint

Prints one SHA-256 each of: the IR hashes of every library flow that needs no learned values, the IR hashes of 200
random programs, and the text of the Triton kernels generated for every library flow at two geometries and two page
sizes. `--json` lists every item, so that two commits can be compared line by line.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys

from agents.grammar.fuzz import random_program
from vortex_core import library
from vortex_core.compiler.triton.generate import generate
from vortex_core.errors import VortexError
from vortex_core.geometry import Geometry

GEOMETRIES = {
    "gqa": Geometry(layers=28, kv_heads=8, group=2, head_dim=128, rope_dim=128, value_dim=128),
    "mla": Geometry(layers=47, kv_heads=1, group=20, head_dim=576, rope_dim=64, value_dim=512),
}
PAGES = (16, 64)
PROGRAMS = 200


def library_hashes() -> dict[str, str]:
    """The IR hash of every library flow."""
    names = {*library.names(), *library.mla_names()} - set(library.untrained_names())
    return {name: library.load(name).ir_hash for name in sorted(names)}


def random_hashes() -> dict[str, str]:
    """The IR hash of the canonical form of each random program, by its seed."""
    return {str(seed): random_program(random.Random(seed)).canonical().ir_hash for seed in range(PROGRAMS)}


def kernel_texts() -> dict[str, str]:
    """The digest of each generated module, or the code of the refusal."""
    found = {}
    for name in library_hashes():
        program = library.load(name).program.canonical()
        for kind, geometry in GEOMETRIES.items():
            for page in PAGES:
                try:
                    text = generate(program, geometry, page).text
                    found[f"{name}/{kind}/{page}"] = hashlib.sha256(text.encode()).hexdigest()
                except VortexError as error:
                    found[f"{name}/{kind}/{page}"] = error.code
    return found


def main() -> None:
    """Print the digests."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="every item instead of one digest a kind")
    options = parser.parse_args()
    kinds = {"library": library_hashes(), "random": random_hashes(), "kernels": kernel_texts()}
    if options.json:
        json.dump(kinds, sys.stdout, indent=1, sort_keys=True)
        return
    for kind, items in kinds.items():
        digest = hashlib.sha256(json.dumps(items, sort_keys=True).encode()).hexdigest()
        print(f"{kind:8} {len(items):4} {digest[:16]}")


if __name__ == "__main__":
    main()
