"""`vortex-search certify`: what a flow loses, at most, on a user's own items."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from search.commands.serve import find_flow
from search.errors import bad_value
from vortex_core.errors import VortexError
from vortex_core.files import read_json

if TYPE_CHECKING:
    from evaluators.certify import Certificate

_CARD = 4 << 20  # bytes


def model_of_export(target: str) -> str | None:
    """The model that an exported folder was measured on; None for anything else."""
    try:
        card = read_json(Path(target) / "card.json", _CARD)
    except (OSError, VortexError):
        return None
    model = card.get("model") if isinstance(card, dict) else None
    return model if isinstance(model, str) else None


def certify_items(
    target: str,
    items: Path,
    *,
    model: str | None,
    prompt: str,
    answer: str,
    metric: str,
    max_new_tokens: int,
    confidence: float,
    device: str,
    on_batch: Callable[[int], None],
) -> Certificate:
    """Answer every row of a JSONL file densely and with a flow, and bound what is lost.

    Args:
        target: as `serve` takes it: a run, an exported folder, a bundle, a `.py` file, or a library flow.
        model: by default the one that the run or export knows.

    Raises:
        VortexError: `VS010` for settings that are out of range or a model that nobody names; `VV002` for rows that
            make no question; what the engine cannot load.
    """
    from pydantic import ValidationError

    from evaluators.certify import certify
    from evaluators.device import choose_device
    from evaluators.tasks.jsonl import Jsonl, JsonlParameters
    from vortex_core.engine import Engine

    if not 0 < confidence < 1:
        raise bad_value("--confidence", confidence, "between 0 and 1, such as 0.9")
    flow, found = find_flow(target, 1)
    model = model or found or model_of_export(target)
    if model is None:
        raise bad_value("--model", "nothing", "a model: only runs and exports know theirs")
    engine = Engine.from_model(model, device=choose_device(device))
    try:
        given = JsonlParameters.model_validate(
            {
                "path": str(items), "prompt": prompt, "answer": answer, "metric": metric,
                "max_new_tokens": max_new_tokens, "context": engine.spec.max_context - max_new_tokens,
            }
        )  # fmt: skip
    except ValidationError as error:
        raise bad_value("--items", items, "; ".join(e["msg"] for e in error.errors())) from error
    questions = Jsonl().questions(engine.tokenizer, given)
    if not questions:
        raise bad_value("--items", items, "a file with at least one row")
    return certify(engine, flow, questions, confidence=confidence, on_batch=on_batch)
