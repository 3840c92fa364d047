"""Export: a directory that a stranger can read, run and check without the run it came from."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from evaluators.results import Metric
from search.campaign.archive import Archive, Entry, sealed_verdict
from search.campaign.feedback import objective_in_words
from search.commands import checksums
from search.commands.agents_guide import AGENTS
from search.commands.wheel import write_wheel
from search.config import CampaignConfig
from search.errors import bad_value, folder_in_use, no_such_rank, no_winner
from search.log.events import Purpose
from search.log.files import write_atomic
from search.log.run import Run
from search.log.state import CampaignState
from search.machine import device_words, versions
from search.tables import metric
from vortex_core.errors import VortexError
from vortex_core.files import read_json
from vortex_core.flow.vflow import plain_name
from vortex_core.ir.flow import Flow
from vortex_core.ir.knobs import Knobs
from vortex_core.ir.program import Program
from vortex_core.sandbox.load import write_flow
from vortex_core.text import MAX_DOC, MAX_MESSAGE, markdown, shell, visible, visible_lines

FORMAT = 1
_PURPOSES: tuple[Purpose, ...] = ("search", "fresh", "holdout", "serving")
_ON = {
    "search": "the items the search selected on",
    "fresh": "fresh items, after the search",
    "holdout": "the sealed items, looked at once",
    "serving": "random tokens, inside SGLang beside its dense backend",
}

_VERIFY = '''\
"""Checks this directory: flow.py still means the recorded program, and measures as recorded.

    python verify.py            trace, hash, parity with the oracle, cost model, accuracy again
    python verify.py --quick    the same without loading the model

Needs vortex-search. Exit status 0: everything agrees; 1: something does not; 2: it could not be checked.
"""

import sys
from pathlib import Path

from search.commands.verify import main

sys.exit(main(Path(__file__).resolve().parent, sys.argv[1:]))
'''


_SERVE = '''\
"""Serves this flow with SGLang.

    python serve.py --model MODEL [options of sglang.launch_server]
    python serve.py --print

Needs an environment with sglang and vortex-search's vortex_core (pip install --no-deps vortex-search).
"""

import sys
from pathlib import Path

from vortex_core.serving.launch import main

sys.exit(main(Path(__file__).resolve().parent, sys.argv[1:]))
'''


_GENERATE = '''\
"""Continues a text with this flow in the embedded engine, beside dense attention.

    python generate.py "The capital of France is" --model MODEL --new-tokens 32

Needs vortex-search and weights that are here (vortex-search models).
"""

import sys
from pathlib import Path

from search.commands.generate import main

sys.exit(main(Path(__file__).resolve().parent, sys.argv[1:]))
'''
_LICENCE = Path(__file__).with_name("licence.txt")


def export(
    run: Run, state: CampaignState, config: CampaignConfig, entry: Entry, out: Path, *, force: bool = False
) -> Path:
    """Write a ranked candidate to `out`; returns it.

    Args:
        force: replace an earlier export in `out`. Nothing that `export` did not write is ever removed, and what was
            changed since is kept beside, as `NAME.kept`.

    Raises:
        VortexError: `VS011`, if `out` holds something else, or an export and `force` is not set.
    """
    _make_room(out, force=force)
    candidate = entry.candidate
    card = make_card(run, state, config, entry)
    program = run.files.get_json(candidate.program)
    flow = Flow(
        candidate.name,
        Program.from_json(program).canonical(),
        Knobs.from_json(candidate.knobs),
        candidate.doc,
    )
    # From the verified program: what is imported is our text, not its author's.
    written = [path.name for path in write_flow(out / "flow.py", flow)]
    texts = {
        "original.txt": run.files.get(candidate.source, ".py"),
        "knobs.json": _pretty(candidate.knobs),
        "program.json": _pretty(program),
        "card.json": _pretty(card),
        "card.md": card_text(card),
        "verify.py": _VERIFY,
        "serve.py": _SERVE,
        "AGENTS.md": AGENTS,
        "generate.py": _GENERATE,
        "LICENSE": _LICENCE.read_text(encoding="utf-8"),
        **kernel_files(flow, config.model),
        **dialect_files(flow),
    }
    texts["README.md"] = _readme(card, sorted(texts))
    for name, text in texts.items():
        write_atomic(out / name, text)
    written += texts
    named = plain_name(flow.name)
    summary = f"Sparse-attention flow {named}, IR {card['ir_hash']}"
    written.append(write_wheel(out, written, named, card["key"], summary))
    checksums.write(out, written)
    return out


def kernel_files(flow: Flow, model: str) -> dict[str, str]:
    """The generated kernels for a model's dimensions, with the hash of their text; or why there are none."""
    from search.commands.explain import dimensions
    from vortex_core.compiler.triton.generate import generate

    try:
        geometry = dimensions(model).geometry()
        module = generate(flow.program.canonical(), geometry, flow.knobs.page_size)
    except VortexError as error:
        return {"kernels/WHY.txt": f"No kernels were generated for {visible(model)}: {error.message}\n"}
    about = {
        "model": model,
        "page_size": flow.knobs.page_size,
        "sha256": hashlib.sha256(module.text.encode()).hexdigest(),
        "geometry": asdict(geometry),
    }
    return {"kernels/kernels.py": module.text, "kernels/kernels.json": _pretty(about)}


def dialect_files(flow: Flow) -> dict[str, str]:
    """The flow as a vortex_torch program with its settings, or why that system cannot say it."""
    from vortex_core.dialects.vortex_torch.write import write

    try:
        written = write(flow)
    except VortexError as error:
        return {"vortex_torch/WHY.txt": f"{error}\n"}
    return {"vortex_torch/flow.py": written.source, "vortex_torch/flow.json": _pretty(written.settings)}


def _make_room(out: Path, *, force: bool) -> None:
    """Have an empty place for an export; with `force`, the files of an older export go, and nothing else ever.

    Raises:
        VortexError: `VS011`, if something lies there that is not ours to remove; `VS010`, if no folder can be there.
    """
    try:
        if not os.path.lexists(out):
            out.mkdir(parents=True)
            return
        if out.is_symlink() or not out.is_dir():
            raise folder_in_use(str(out), "it is no folder of an export")
        found = {path.name for path in out.iterdir()}
        if found and not force:
            raise folder_in_use(str(out))
        if found and not is_export(out):
            raise folder_in_use(str(out), "it is no export")
        # What would be written through a link is somebody else's.
        for name in ("kernels", "vortex_torch", "README.md", "flow.safetensors", checksums.NAME, *_ABOUT):
            place = out / name
            if place.is_symlink() or (
                name in ("kernels", "vortex_torch") and place.exists() and not place.is_dir()
            ):
                raise folder_in_use(str(out), f"{name} there is not the export's")
        checksums.remove(out)
    except OSError as error:
        raise bad_value("--out", str(out), f"a folder that can be written ({error.strerror})") from None


def remove_export(folder: Path) -> None:
    """Remove an export, and its folder if nothing of anybody else's lies in it."""
    checksums.remove(folder)
    if not any(folder.iterdir()):
        folder.rmdir()


def is_export(folder: Path) -> bool:
    """Whether `export` wrote a folder."""
    try:
        card = read_json(folder / "card.json")
    except OSError:
        return False
    return isinstance(card, dict) and "format" in card and "ir_hash" in card


def choose(archive: Archive, run: str, rank: int = 1, *, winner: bool = False) -> Entry:
    """The found program of a rank, or the winner.

    Raises:
        VortexError: `VS007` for a rank that the run does not have, `VS044` without a winner.
    """
    if winner:
        if archive.winner is None:
            over = archive.state.finished is not None
            raise no_winner(
                run, "no program kept the gates on fresh items" if over else "the campaign is not over"
            )
        return archive.winner
    found = archive.ranked(rank)
    if found is None:
        raise no_such_rank(run, rank, sum(1 for entry in archive.entries if entry.rank is not None))
    return found


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
        "model": state.started.settings["model"],
        "accuracy_model": config.accuracy_model,
        "random_weights": config.random_weights,
        "model_source": hub_name(state.started.settings["model"]),
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


def card_text(card: dict[str, Any]) -> str:
    """The card for people."""
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
    lines += ["", "## Limits", "", *(f"- {line}" for line in _limits(card))]
    if card["statement"]:
        lines += ["", card["statement"]["statement"]]
    for purpose, metrics in card["metrics"].items():
        lines += ["", f"## On {_ON[purpose]} (seed {card['seeds'][purpose]})", ""]
        lines += ["| metric | value and 95% interval | unit | how | n |", "|---|---|---|---|---|"]
        lines += [_metric_row(name, data) for name, data in metrics.items()]
    return "\n".join(lines) + "\n"


def _limits(card: dict[str, Any]) -> list[str]:
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
    said.append(
        "It acts at decode only; prefill is dense. No certificate of quality on tasks of your own: measure those."
    )
    return said


def models_in_words(card: dict[str, Any]) -> str:
    """The model, and whose answers count where they are not its own."""
    if not card.get("accuracy_model"):
        return str(card["model"])
    weights = " (random weights)" if card.get("random_weights") else ""
    return f"{card['model']}{weights} for speed, {card['accuracy_model']} for accuracy"


def measured_on(card: dict[str, Any]) -> str:
    """What the engines of a card's run were on."""
    return device_words(card.get("devices", ())) or str(card["measured_on"].get("processor"))


def _standing(card: dict[str, Any]) -> str:
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


_ABOUT = {
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
    "LICENSE": "Apache-2.0",
}


def _readme(card: dict[str, Any], names: Sequence[str]) -> str:
    files = "\n".join(f"| `{name}` | {_ABOUT[name]} |" for name in ["flow.py", *names])
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


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True) + "\n"
