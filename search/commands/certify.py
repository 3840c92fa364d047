"""`vortex-search certify`: what a flow loses, at most, on a user's own items; kept beside what it is about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.commands.serve import find_flow
from search.errors import bad_value
from search.log.run import run_names, runs_root
from search.machine import device_facts, device_words
from vortex_core.errors import VortexError
from vortex_core.files import read_json
from vortex_core.text import visible

if TYPE_CHECKING:
    from pydantic import ValidationError

    from evaluators.tasks.base import Question

_CARD = 4 << 20  # bytes
_SURELY = 1e-6


def model_of_export(target: str) -> str | None:
    """The model that an exported folder was measured on; None for anything else."""
    try:
        card = read_json(Path(target) / "card.json", _CARD)
    except (OSError, VortexError):
        return None
    model = card.get("model") if isinstance(card, dict) else None
    return model if isinstance(model, str) else None


def _odd(error: ValidationError, items: Path) -> VortexError:
    """`VS010` for the first option that makes no question of a row."""
    first = error.errors()[0]
    field, why = str((first["loc"] or ("items",))[0]), first["msg"].removeprefix("Value error, ")
    if field in ("prompt", "answer", "metric", "max_new_tokens"):
        return bad_value(f"--{field.replace('_', '-')}", visible(first["input"], 80), why)
    if field == "context":
        return bad_value("--max-new-tokens", "this many", "fewer tokens than the model's context has")
    return bad_value("--items", str(items), why)


def _repeated(questions: Sequence[Question]) -> tuple[int, int] | None:
    """Lines of two questions that are the same: copies are one draw, and would make the bound look surer than it is."""
    seen: dict[object, int] = {}
    for question in questions:
        first = seen.setdefault((question.prompt, question.answers), question.about["line"])
        if first != question.about["line"]:
            return first, question.about["line"]
    return None


def certify_items(
    target: str,
    items: Path,
    *,
    rank: int = 1,
    winner: bool = False,
    model: str | None,
    prompt: str,
    answer: str,
    metric: str,
    max_new_tokens: int,
    confidence: float,
    device: str,
    on_batch: Callable[[int], None],
) -> dict[str, Any]:
    """Answer every row of a JSONL file densely and with a flow, and bound what is lost.

    A run keeps the certificate for its exports, an exported folder beside its card.

    Args:
        target: as `serve` takes it: a run, an exported folder, a bundle, a `.py` file, or a library flow.
        rank, winner: which program of a run.
        model: by default the one that the run or export knows.

    Returns:
        The certificate as JSON values (`certificate.document`), and `kept`: the file it was laid into, or None.

    Raises:
        VortexError: `VS013` for an exported folder that was changed; `VS010` for settings that are out of range or a
            model that nobody names; `VV002` for rows that make no question; what the engine cannot load.
    """
    from pydantic import ValidationError

    from evaluators.certify import certify
    from evaluators.device import choose_device
    from evaluators.tasks.jsonl import Jsonl, JsonlParameters
    from search.commands import certificate
    from search.commands.export import is_export
    from vortex_core.engine import Engine

    if not _SURELY <= confidence <= 1 - _SURELY:  # nearer to 1 it would read as a certainty
        raise bad_value("--confidence", confidence, f"between {_SURELY:f} and {1 - _SURELY:f}, such as 0.9")
    flow, found = find_flow(target, rank, winner=winner)
    model = model or found or model_of_export(target)
    if model is None:
        raise bad_value("--model", "nothing", "a model: only runs and exports know theirs")
    folder = Path(target)
    exported = target not in run_names() and folder.is_dir() and is_export(folder)
    if exported:
        flow = replace(flow, name=certificate.check_whole(folder, flow.key)["name"])
    engine = Engine.from_model(model, device=choose_device(device))
    asked = {"prompt": prompt, "answer": answer, "metric": metric, "max_new_tokens": max_new_tokens}
    try:
        given = JsonlParameters.model_validate(
            {"path": str(items), "context": engine.spec.max_context - max_new_tokens, **asked}
        )
    except ValidationError as error:
        raise _odd(error, items) from error
    questions = Jsonl().questions(engine.tokenizer, given)
    if not questions:
        raise bad_value("--items", str(items), "a file with at least one row")
    if (twice := _repeated(questions)) is not None:
        raise bad_value(
            "--items", str(items), f"rows that were drawn apart: row {twice[1]} is row {twice[0]} again"
        )
    bounded = certify(engine, flow, questions, confidence=confidence, on_batch=on_batch)
    where = device_words([device_facts(engine.device.type)])
    made = certificate.document(bounded, items, given.sha256, asked, where)
    kept = None
    if exported:
        kept = certificate.keep_in_export(folder, made)
    elif target in run_names():
        kept = certificate.keep_in_run(runs_root() / target, made)
    return made | {"kept": None if kept is None else str(kept)}
