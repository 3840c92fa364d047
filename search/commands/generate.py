"""`python generate.py` in an exported folder: a text continued with the flow in the embedded engine, beside dense."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vortex_core.errors import VortexError
from vortex_core.files import read_json
from vortex_core.sandbox.load import trace_file


def main(folder: Path, arguments: Sequence[str]) -> int:
    """Command line of `generate.py`; returns the exit status."""
    parser = argparse.ArgumentParser(prog="generate.py", description="Continue a text with this flow.")
    parser.add_argument("text")
    parser.add_argument("--model", help="by name, directory or hub id (default: the one it was found on)")
    parser.add_argument("--new-tokens", type=int, default=32)
    options = parser.parse_args(arguments)
    try:
        for name, text in continuations(folder, options.text, options.model, options.new_tokens):
            print(f"{name}: {text}", flush=True)
    except VortexError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def continuations(folder: Path, text: str, model: str | None, new_tokens: int) -> list[tuple[str, str]]:
    """The same text continued densely and with the flow, greedily.

    Raises:
        VortexError: whatever is wrong with flow.py; missing weights.
    """
    from evaluators.device import choose_device
    from vortex_core.engine import Engine
    from vortex_core.engine.models.loading import load_weights
    from vortex_core.engine.models.tokenizer import load_tokenizer
    from vortex_core.engine.models.weights import resolve_model
    from vortex_core.engine.requests import Request

    flow = trace_file(folder / "flow.py")
    found = resolve_model(model or str(read_json(folder / "card.json")["model"]))
    tokenizer = load_tokenizer(found.directory)
    tokens = tokenizer.encode(text)
    room = 2 * (len(tokens) + new_tokens) + 1024
    weights = load_weights(found, device=choose_device("auto"), dtype=None)
    engine = Engine(weights, tokenizer, spec=found.spec, max_tokens=room)
    results = []
    for name, program in (("dense", None), (flow.name, flow.program)):
        engine.load_flow(program, flow.knobs if program is not None else None)
        results.append((name, engine.generate([Request(tokens, new_tokens)])[0].text or ""))
    return results
