"""The card of an exported program: what was measured, on what, its limits; as JSON and for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from evaluators.results import Metric
from search.campaign.archive import Entry, sealed_verdict
from search.campaign.feedback import objective_in_words
from search.config import CampaignConfig
from search.log.events import Purpose
from search.log.run import Run
from search.log.state import CampaignState
from search.machine import device_words, versions
from search.tables import metric
from vortex_core.text import MAX_DOC, MAX_MESSAGE, markdown, shell, visible_lines

FORMAT = 1
CERTIFICATE = "certificate.json"
_PURPOSES: tuple[Purpose, ...] = ("search", "fresh", "holdout", "serving")
_ON = {
    "search": "the items the search selected on",
    "fresh": "fresh items, after the search",
    "holdout": "the sealed items, looked at once",
    "serving": "random tokens, inside SGLang beside its dense backend",
}


_TEXTS = (
    "name",
    "doc",
    "idea",
    "ir_hash",
    "key",
    "exported_at",
    "run",
    "id",
    "found_by",
    "objective",
    "verdict",
)


def make_card(run: Run, state: CampaignState, config: CampaignConfig, entry: Entry) -> dict[str, Any]:
    """Everything known about a candidate, as JSON values."""
    assert state.started is not None
    candidate, score = entry.candidate, entry.score
    sealed = sealed_verdict(candidate, config.objective)
    parents = [state.candidates[key] for key in candidate.parents if key in state.candidates]
    seeds = {purpose: candidate.seeds[purpose] for purpose in _PURPOSES if purpose in candidate.seeds}
    summary = state.finished.summary if state.finished and state.finished.winner == candidate.key else None
    return {
        "format": FORMAT,
        "name": candidate.name,
        "doc": candidate.doc,
        "idea": candidate.idea,
        "ir_hash": candidate.ir_hash,
        "key": candidate.key,
        "exported_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "run": run.name,
        "id": candidate.label,
        "rank": entry.rank,
        "found_by": candidate.proposer,
        "parents": [f"{p.label} {p.name}" for p in parents],
        "model": config.model,
        "accuracy_model": config.accuracy_model,
        "random_weights": config.random_weights,
        "model_source": hub_name(config.model),
        "objective": objective_in_words(config.objective),
        "verdict": score.verdict.name.lower(),
        "sealed": None if sealed is None else sealed.name.lower(),
        "winner": state.finished is not None and state.finished.winner == candidate.key,
        "open_points": list(score.broken),
        "plan": {k: v for k, v in state.started.plan.items() if k != "digest"},
        "seeds": seeds,
        "metrics": {
            purpose: {name: found.to_json() for name, found in candidate.metrics(purpose).items()}
            for purpose in seeds
        },
        "items": {purpose: candidate.items(purpose) for purpose in seeds},
        "statement": summary,
        "measured_with": state.started.versions,
        "measured_on": state.started.machine,
        "devices": state.devices,
        "exported_with": versions(),
    }


def hub_name(model: str) -> str:
    """Where others find a model: the hub id of a described one, anything else as it is."""
    from vortex_core.specs import list_models, load_model

    return load_model(model).hf_id if model.lower() in list_models() else model


def card_text(card: Mapping[str, Any], certificate: Mapping[str, Any] | None = None) -> str:
    """The card for people.

    Raises:
        TypeError: a field that holds text holds something else; a card may be anybody's.
    """
    for field in _TEXTS:
        if not isinstance(card[field], str):
            raise TypeError(f"{field} is no text")
    lines = [
        f"# {markdown(card['name'])}",
        "",
        *(markdown(line, MAX_DOC) for line in visible_lines(card["doc"] or card["idea"] or "").split("\n")),
        "",
        f"- model: {markdown(models_in_words(card))}",
        f"- program: IR {card['ir_hash']}, with knobs {card['key']}",
        f"- found by {markdown(card['found_by'])} in run {card['run']} as {card['id']}",
        f"- goal: {markdown(card['objective'], MAX_MESSAGE)}",
        f"- gates: {card['verdict']}" + "".join(f"; {point}" for point in card["open_points"]),
        f"- on the sealed items: {card['sealed'] or 'not measured'}",
        f"- measured on {measured_on(card)} with "
        + ", ".join(f"{k} {v}" for k, v in card["measured_with"].items()),
        f"- exported {card['exported_at']}",
    ]
    lines += ["", "## Limits", "", *(f"- {line}" for line in _limits(card, certificate))]
    if certificate is not None:
        lines += ["", "## Certificate", "", *_certificate(certificate)]
    if card["statement"]:
        lines += ["", card["statement"]["statement"]]
    for purpose, metrics in card["metrics"].items():
        lines += ["", f"## On {_ON[purpose]} (seed {card['seeds'][purpose]})", ""]
        lines += ["| metric | value and 95% interval | unit | how | n |", "|---|---|---|---|---|"]
        lines += [_metric_row(name, data) for name, data in metrics.items()]
    return "\n".join(lines) + "\n"


def _limits(card: Mapping[str, Any], certificate: Mapping[str, Any] | None) -> list[str]:
    """What the numbers of a card do not say, from the card itself."""
    accuracy = card["plan"].get("accuracy") or {}
    contexts = sorted({int(t["context"]) for t in accuracy.get("tasks", ())})
    said = [
        f"Measured on {markdown(models_in_words(card))} only; on another model it is another measurement."
    ]
    if contexts:
        said.append(
            f"Answers were tested from {contexts[0]:,} to {contexts[-1]:,} tokens, and nowhere beyond."
        )
    modelled = {
        name for found in card["metrics"].values() for name, m in found.items() if m.get("how") == "modelled"
    }
    if modelled:
        said.append(f"Modelled, never measured: {markdown(', '.join(sorted(modelled)))}.")
    if card["sealed"] is None:
        said.append("It has not met the sealed items: the numbers are of items that a choice was made on.")
    said.append("It acts at decode only; prefill is dense.")
    if certificate is None:
        said.append(
            "No certificate of quality on tasks of your own: `vortex-search certify . --items FILE` makes one."
        )
    return said


def _certificate(found: Mapping[str, Any]) -> list[str]:
    """What is promised, of which items, and what the promise rests on."""
    asked = found["asked"]
    return [
        markdown(found["words"], MAX_MESSAGE),
        "",
        f"- model {markdown(found['model'])}, answers of {markdown(found['device'])}, {found['certified_at']}",
        f"- items: {found['items']} of {markdown(found['items_file'])}, SHA-256 {found['items_sha256']}",
        f"- asked as {markdown(asked['prompt'])}, {asked['max_new_tokens']} tokens at most",
        f"- right if {markdown(asked['metric'])}: {markdown(asked['answer'])}",
        "- it holds for items drawn as these were, and for no others",
    ]


def models_in_words(card: Mapping[str, Any]) -> str:
    """The model, and whose answers count where they are not its own."""
    if not card.get("accuracy_model"):
        return str(card["model"])
    weights = " (random weights)" if card.get("random_weights") else ""
    return f"{card['model']}{weights} for speed, {card['accuracy_model']} for accuracy"


def measured_on(card: Mapping[str, Any]) -> str:
    """What the engines of a card's run were on."""
    return device_words(card.get("devices", ())) or str(card["measured_on"].get("processor"))


def _standing(card: Mapping[str, Any]) -> str:
    """What may be said of a program, in a sentence: that it was found is no praise."""
    if card["verdict"] == "failed":
        return f"It broke the campaign's gates ({'; '.join(card['open_points'])}): not fit for use."
    proof = "proven" if card["verdict"] == "proven" else "kept by value, not proven by the intervals"
    chosen = "It won its campaign." if card.get("winner") else "It did not win its campaign."
    sealed = {
        None: "It has not met the sealed items.",
        "failed": "On the sealed items, looked at once, it broke them.",
    }.get(card.get("sealed"), "It kept them on the sealed items, too.")
    return f"{chosen} Gates: {proof}. {sealed}"


def _metric_row(name: str, data: dict[str, Any]) -> str:
    found = Metric(**data)
    shown = metric(found).replace(f" ({found.how})", "")
    return f"| {markdown(name)} | {shown} | {markdown(found.unit)} | {markdown(found.how)} | {found.n} |"


ABOUT = {
    "flow.py": "the program, in vFlow, written from what was measured",
    "original.txt": "its author's own text, to read; never run it unseen",
    "knobs.json": "its settings: page size, token budget, pages always kept",
    "program.json": "the same program as verified IR; its hash is the program's identity",
    "card.md": "what was measured, how, on what, with intervals; what it is not for",
    "card.json": "the same for programs",
    "verify.py": "checks all of this again, as `vortex-search verify` does",
    "serve.py": "serves the flow with SGLang",
    "AGENTS.md": "how a coding agent checks it and goes on from it",
    "generate.py": "continues a text in the embedded engine",
    "kernels/kernels.py": "the Triton kernels generated for the model's dimensions",
    "kernels/kernels.json": "their hash, and the dimensions",
    "kernels/WHY.txt": "why no kernels lie here",
    "vortex_torch/flow.py": "the same program for vortex_torch",
    "vortex_torch/flow.json": "its settings there",
    "vortex_torch/WHY.txt": "why vortex_torch cannot say this program",
    CERTIFICATE: "what it loses at most on a user's own items, with what probability",
    "flow.safetensors": "its learned parameters",
    "LICENSE": "Apache-2.0",
}


def readme(card: Mapping[str, Any], names: Sequence[str]) -> str:
    """What lies in the folder, and what to do with it."""
    files = "\n".join(
        f"| `{name}` | {ABOUT[name]} |"
        for name in sorted(names, key=lambda n: (n != "flow.py", n))
        if name in ABOUT
    )
    return f"""\
# {markdown(card["name"])}

A sparse-attention algorithm found by vortex-search on {markdown(models_in_words(card))}. {_standing(card)}

| file | what it is |
|---|---|
{files}
| `checksums.txt` | SHA-256 of every file: `sha256sum -c checksums.txt` |

The wheel holds the same: `pip install` it, and `load()` of its package gives the flow.

    vortex-search check flow.py
    vortex-search explain flow.py --model {shell(card["model"])} --gpu h200
    vortex-search evaluate flow.py --model {shell(card["model"])}
    vortex-search verify .
    python serve.py --port 30000

Numbers marked modelled come from a cost model, not from a GPU.
"""


def pretty(value: Any) -> str:
    """JSON to read, the same for the same value."""
    return json.dumps(value, indent=2, sort_keys=True) + "\n"
