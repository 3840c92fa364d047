"""The shelf of what was found: a program that held where it could not have been fitted, with the card of its run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from search.campaign.archive import Entry
from search.commands.card import make_card, pretty
from search.config import CampaignConfig
from search.errors import bad_value, file_exists, not_held
from search.log.files import write_atomic
from search.log.run import Run
from search.log.state import CampaignState
from vortex_core.ir.flow import Flow
from vortex_core.ir.knobs import Knobs
from vortex_core.ir.program import Program
from vortex_core.sandbox.load import write_flow

_NAME = re.compile(r"[a-z][a-z0-9_]{2,39}")
_WHERE = {"holdout": "the sealed items", "second": "a model that the search never saw"}


def held(summary: Mapping[str, Any]) -> list[str]:
    """What a winner showed against the library at equal cost, in words.

    Raises:
        VortexError: `VS053` where, on the sealed items or on the second model, it was not asked, beat nobody, or lost.
    """
    words = []
    for purpose, where in _WHERE.items():
        found = [peer for peer in summary.get("peers", ()) if peer["purpose"] == purpose]
        if not found:
            raise not_held(f"no library program of its cost was asked beside it on {where}")
        if lost := [p["words"] for p in found if p["finding"] == "not better"]:
            raise not_held(lost[0])
        if not any(p["finding"] == "better" for p in found):
            raise not_held(f"on {where} it is not told apart from the library: {found[0]['words']}")
        words += [str(p["words"]) for p in found]
    return words


def shelve(
    run: Run, state: CampaignState, config: CampaignConfig, entry: Entry, name: str, folder: Path
) -> list[Path]:
    """Write the winner of a finished run as `NAME.py` and its card as `NAME.json` into a folder.

    Returns:
        The files written.

    Raises:
        VortexError: `VS053`, if it did not hold (see `held`); `VS010` for a name that no flow may have; `VS054`, if the
            folder has such a file.
    """
    assert state.finished is not None
    if not _NAME.fullmatch(name):
        raise bad_value("--name", name, "3 to 40 small letters, digits and underscores, a letter first")
    words = held(state.finished.summary)
    for suffix in (".py", ".json", ".safetensors"):
        if (folder / f"{name}{suffix}").exists():
            raise file_exists(str(folder / f"{name}{suffix}"))
    candidate = entry.candidate
    card = make_card(run, state, config, entry)
    for left_out in ("items", "statement", "rank", "open_points"):
        del card[left_out]
    tries = {
        "proposals": len(state.proposals),
        "screened": state.screened_programs,
        "answered": state.distinct_programs,
        "before_it": candidate.number - 1,
    }
    card |= {"name": name, "tries": tries, "held": words, "seconds": round(state.active_seconds, 1)}
    program = Program.from_json(run.files.get_json(candidate.program)).canonical()
    found = f"Found by {candidate.proposer} on {card['model']}; its card is {name}.json."
    doc = "\n".join([candidate.doc or candidate.idea, "", found, *words])
    folder.mkdir(parents=True, exist_ok=True)
    written = write_flow(folder / f"{name}.py", Flow(name, program, Knobs.from_json(candidate.knobs), doc))
    write_atomic(folder / f"{name}.json", pretty(card))
    return [*written, folder / f"{name}.json"]
