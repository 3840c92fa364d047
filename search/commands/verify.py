"""`python verify.py` in an exported folder: does flow.py still mean, and measure as, what the card says?"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluators.plan import EvaluationPlan
from evaluators.results import Metric, StageResult
from search.campaign.comparison import accuracy_difference
from search.commands import certificate, checksums
from search.commands.card import CERTIFICATE
from search.errors import cannot_measure_again, not_an_export
from search.machine import device_words
from search.tables import metric
from vortex_core.errors import VortexError
from vortex_core.files import MAX_PROGRAM, read_json
from vortex_core.ir.flow import Flow
from vortex_core.ir.knobs import Knobs
from vortex_core.ir.program import Program
from vortex_core.sandbox.load import trace_file
from vortex_core.text import MAX_MESSAGE, visible

_CPU_STAGES = ("static", "compile", "parity", "modelled")
_LISTED = ("flow.py", "flow.safetensors", "flow.npz", "program.json", "knobs.json", "card.json", CERTIFICATE)
_NOTICED = 0.15  # where answers differ, the largest loss that may stay possible
_SAME = 1e-6  # relative; the cost model is deterministic


@dataclass(frozen=True)
class Check:
    """One comparison with the card."""

    name: str
    agrees: bool
    words: str


def main(folder: Path, arguments: Sequence[str]) -> int:
    """Command line of `verify.py`; returns 0 (agrees), 1 (does not) or 2 (could not be checked)."""
    parser = argparse.ArgumentParser(prog="verify.py", description="Check an exported flow against its card.")
    parser.add_argument("--quick", action="store_true", help="do not load the model")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args(arguments)
    try:
        checks: list[Check] = []
        for found in verify(folder, measure=not options.quick):
            check = Check(
                found.name, found.agrees, visible(found.words, MAX_MESSAGE)
            )  # a stranger's words too
            checks.append(check)
            if not options.json:
                print(f"{'ok  ' if check.agrees else 'FAIL'} {check.name}: {check.words}", flush=True)
    except VortexError as error:
        if options.json:
            print(json.dumps({"error": error.to_json()}, indent=2))
        else:
            print(error, file=sys.stderr)
        return 2
    agrees = all(check.agrees for check in checks)
    if options.json:
        print(json.dumps({"agrees": agrees, "checks": [vars(check) for check in checks]}, indent=2))
    return 0 if agrees else 1


def verify(folder: Path, *, measure: bool) -> Iterator[Check]:
    """Check an export, cheapest first.

    Args:
        measure: also load the model and answer the recorded items again.

    Raises:
        VortexError: `VS013` if files are missing; `VS045` without the kind of device it was measured on; whatever is
            wrong with flow.py; missing weights.
    """
    card = _read(folder, "card.json")
    try:
        yield from _verify(folder, card, measure)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise not_an_export(
            str(folder), f"a card that says what is needed ({type(error).__name__})"
        ) from error


def _verify(folder: Path, card: dict[str, Any], measure: bool) -> Iterator[Check]:
    listed, wrong = checksums.read(folder), checksums.disagreements(folder)
    wrong += [
        f"{name} is not listed" for name in _LISTED if name not in listed and os.path.lexists(folder / name)
    ]
    yield Check("checksums", not wrong, "; ".join(wrong) or f"{len(listed)} files are as written")
    traced = trace_file(folder / "flow.py")
    yield _equal("program", card["ir_hash"], traced.ir_hash)
    yield _equal("program and knobs", card["key"], traced.key)
    yield _equal("program.json", card["ir_hash"], Program.from_json(_read(folder, "program.json")).ir_hash)
    yield _equal("knobs.json", traced.knobs.digest, Knobs.from_json(_read(folder, "knobs.json")).digest)
    if (promised := certificate.read(folder / CERTIFICATE)) is not None:
        wrong = certificate.doubts(promised, traced.key)
        yield Check("certificate", not wrong, "; ".join(wrong) or promised["words"])
    flow, plan = traced.flow, EvaluationPlan.model_validate(card["plan"])
    recorded = {name: Metric(**data) for found in card["metrics"].values() for name, data in found.items()}
    yield from _cpu(flow, card, plan, recorded)
    if measure:
        yield from _measured(flow, card, plan)


def _cpu(
    flow: Flow, card: dict[str, Any], plan: EvaluationPlan, recorded: dict[str, Metric]
) -> Iterator[Check]:
    """Parity with the oracle, and the cost model, on the recorded settings."""
    from evaluators.worker import run_cpu_stage

    for stage in _CPU_STAGES:
        result = run_cpu_stage(
            stage, flow, card["model"], plan, card["seeds"].get("search"), card.get("accuracy_model")
        )
        if not result.passed:
            yield Check(stage, False, _reason(result))
            continue
        if stage == "modelled":
            for name, found in result.metrics.items():
                if name in recorded:
                    yield _close(name, recorded[name].value, found.value)
        else:
            parity = result.metrics.get("parity")
            words = f"{parity.value:.4f} of {parity.n} rows select as the oracle does" if parity else "passed"
            yield Check(stage, True, words)


def _measured(flow: Flow, card: dict[str, Any], plan: EvaluationPlan) -> Iterator[Check]:
    """Answer the recorded items again, on the best set there is; other hardware may flip a close answer."""
    from evaluators.worker import EvaluationWorker

    device = _device(card)
    purpose = next((p for p in ("fresh", "search") if p in card["seeds"]), None)
    if purpose is None:
        yield Check("accuracy", False, "the card records no measured items")
        return
    worker = EvaluationWorker(
        card["model"],
        plan,
        device=device,
        accuracy_model=card.get("accuracy_model"),
        random_weights=card.get("random_weights", False),
    )
    result = worker.run("accuracy", flow, card["seeds"][purpose])
    before: list[float] = []
    after: list[float] = []
    for task, scores in sorted(card["items"][purpose].items()):
        if task in result.items:
            n = min(len(scores), len(result.items[task]))
            before += scores[:n]
            after += result.items[task][:n]
    if not before:
        yield Check("accuracy", False, f"none of the {purpose} items was answered: {_reason(result)}")
        return
    changed = sum(a != b for a, b in zip(before, after, strict=True))
    difference = accuracy_difference(after, before)
    assert difference.low is not None
    assert difference.high is not None
    excluded = -difference.low
    # Other hardware may flip a close answer. Where answers differ, the interval must be narrow enough to notice a loss.
    agrees = changed == 0 or (difference.low <= 0 <= difference.high and excluded <= _NOTICED)
    yield Check(
        "accuracy",
        agrees,
        f"{sum(after) / len(after):.3f}, recorded {sum(before) / len(before):.3f}; {changed} of {len(before)} answers "
        f"differ ({purpose} items); a loss above {excluded:.3f} is excluded",
    )
    if "decode" in plan.stages and "decode_speedup" in card["metrics"].get("search", {}):
        yield _speed(
            worker.run("decode", flow, card["seeds"]["search"]), card["metrics"]["search"]["decode_speedup"]
        )


def _speed(result: StageResult, recorded: dict[str, Any]) -> Check:
    """Decode speed again; it disagrees where the whole new interval lies below the recorded one."""
    before, after = Metric(**recorded), result.metrics.get("decode_speedup")
    if after is None:
        return Check("decode speed", False, f"not measured again: {_reason(result)}")
    least = before.value if before.low is None else before.low
    most = after.value if after.high is None else after.high
    return Check("decode speed", most >= least, f"{metric(after)}, recorded {metric(before)} of dense")


def _device(card: dict[str, Any]) -> str:
    """The kind of device the card was measured on, which must be here: another would be another measurement.

    Raises:
        VortexError: `VS045` for results of a GPU where there is none.
    """
    kinds = {device["kind"] for device in card.get("devices", ())}
    if "cuda" not in kinds:
        return "cpu"
    import torch

    if not torch.cuda.is_available():
        raise cannot_measure_again(device_words(card["devices"]))
    return "cuda"


def _read(folder: Path, name: str) -> dict[str, Any]:
    try:
        data = read_json(folder / name, MAX_PROGRAM)
    except OSError as error:
        raise not_an_export(str(folder), f"a readable {name} ({error.strerror})") from error
    if not isinstance(data, dict):
        raise not_an_export(str(folder), f"an object in {name}")
    return data


def _equal(name: str, recorded: str, found: str) -> Check:
    same = recorded == found
    return Check(name, same, found if same else f"{found}, recorded {recorded}")


def _close(name: str, recorded: float, found: float) -> Check:
    same = abs(recorded - found) <= _SAME * max(abs(recorded), abs(found))
    return Check(name, same, f"{found:.6g}" if same else f"{found:.6g}, recorded {recorded:.6g}")


def _reason(result: StageResult) -> str:
    if result.failure is None:
        return "no reason given"
    return f"{result.failure.error.get('code')}: {result.failure.error.get('message')}"
