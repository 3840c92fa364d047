"""Certificates that stay beside what they are about: in a run, whence exports take them, and in exported folders."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from search.commands import checksums
from search.commands.card import CERTIFICATE, card_text, pretty, readme
from search.commands.wheel import write_wheel
from search.errors import not_an_export
from search.log.files import write_atomic
from search.machine import versions
from vortex_core.files import MAX_PROGRAM, read_json
from vortex_core.flow.vflow import plain_name
from vortex_core.text import visible

if TYPE_CHECKING:
    from evaluators.certify import Certificate

SCHEMA = "vortex-search/certificate/1"
_FOLDER = "certificates"  # of a run
_COUNTS = ("items", "dense_right", "flow_right", "lost", "gained")
_MOST_ITEMS = 10**9
_ANEW = ("card.md", "README.md", CERTIFICATE)


class _Asked(BaseModel):
    """How the items were asked."""

    model_config = ConfigDict(strict=True)

    prompt: str
    answer: str
    metric: str
    max_new_tokens: int


class _Kept(BaseModel):
    """A certificate as it lies in a file: what anybody may have written there, typed."""

    model_config = ConfigDict(strict=True)

    flow: str
    key: str
    ir_hash: str
    model: str
    items: int
    dense_right: int
    flow_right: int
    lost: int
    gained: int
    confidence: float
    bound: float
    tokens: tuple[int, int]
    words: str
    items_file: str
    items_sha256: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
    asked: _Asked
    certified_at: str
    device: str


def document(
    found: Certificate, items: Path, sha256: str, asked: Mapping[str, Any], device: str
) -> dict[str, Any]:
    """A certificate with what it depends on: the items by content, how they were asked, when and on what.

    Args:
        sha256: of the items' file as it was answered.
        asked: prompt, answer, metric and tokens generated at most.
        device: that answered, in words.
    """
    return {
        "schema": SCHEMA,
        **found.to_json(),
        "items_file": items.name,
        "items_sha256": sha256,
        "asked": dict(asked),
        "certified_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device,
        "certified_with": versions(),
    }


def read(path: Path) -> dict[str, Any] | None:
    """The certificate in a file, or None where there is no such file.

    Raises:
        VortexError: for a file that is no certificate of ours.
    """
    if not os.path.lexists(path):
        return None
    try:
        found = read_json(path, MAX_PROGRAM)
    except OSError as error:
        raise not_an_export(str(path.parent), f"a readable {path.name} ({error.strerror})") from error
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise not_an_export(str(path.parent), f"{SCHEMA} in {path.name}")
    try:
        _Kept.model_validate_json(json.dumps(found))
    except ValidationError as error:
        wrong = ", ".join(sorted({".".join(map(str, e["loc"])) for e in error.errors()}))
        raise not_an_export(
            str(path.parent), f"{visible(wrong, 200)} as it should be in {path.name}"
        ) from error
    return found


def keep_in_run(folder: Path, certificate: Mapping[str, Any]) -> Path:
    """Lay a certificate into a run's folder, for `export` to carry; an older one of the same program goes."""
    path = folder / _FOLDER / f"{certificate['key']}.json"
    path.parent.mkdir(exist_ok=True)
    write_atomic(path, pretty(certificate))
    return path


def of_run(folder: Path, key: str) -> dict[str, Any] | None:
    """The certificate of a program of a run, where one was computed.

    Raises:
        VortexError: `VS013` for one that is not ours, not of this program, or promises what its counts do not give.
    """
    path = folder / _FOLDER / f"{key}.json"
    found = read(path)
    if found is not None and (wrong := doubts(found, key)):
        raise not_an_export(str(path), f"a certificate that holds ({'; '.join(wrong)})")
    return found


def check_whole(folder: Path, key: str) -> dict[str, Any]:
    """Make sure that an exported folder is as it was written, before minutes are spent on it; returns its card.

    Raises:
        VortexError: `VS013`, if its card is of another program, or a file that is not made anew was changed.
    """
    changed = [said for said in checksums.disagreements(folder) if said.split()[0] not in _ANEW]
    if not checksums.read(folder) or changed:
        raise not_an_export(str(folder), "; ".join(changed) or checksums.NAME)
    try:
        card = read_json(folder / "card.json", MAX_PROGRAM)
        if not isinstance(card, dict) or card.get("key") != key:
            raise not_an_export(str(folder), f"a card of {key}")
        readme(card, [])
        card_text(card)
    except OSError as error:
        raise not_an_export(str(folder), f"a readable card.json ({error.strerror})") from error
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        why = f"a card that says what is needed ({type(error).__name__})"
        raise not_an_export(str(folder), why) from error
    return card


def keep_in_export(folder: Path, certificate: Mapping[str, Any]) -> Path:
    """Lay a certificate into an exported folder: card and README speak of it, wheel and checksums hold it.

    What somebody changed of these files is kept as `NAME.kept`.

    Raises:
        VortexError: `VS013`, as `check_whole`.
    """
    card = check_whole(folder, str(certificate["key"]))
    listed = checksums.read(folder)
    for name in [*_ANEW, *(n for n in listed if n.endswith(".whl"))]:
        checksums.make_room(folder / name, listed.get(name))
    stays = [name for name in listed if name not in _ANEW and not name.endswith(".whl")]
    dress(folder, stays, card, certificate)
    return folder / CERTIFICATE


def dress(
    folder: Path, names: Sequence[str], card: Mapping[str, Any], certificate: Mapping[str, Any] | None
) -> None:
    """Write what speaks of the other files of an export: card and README for people, certificate, wheel, checksums.

    Args:
        names: the files that are written already.
    """
    texts = {"card.md": card_text(card, certificate)}
    if certificate is not None:
        texts[CERTIFICATE] = pretty(certificate)
    texts["README.md"] = readme(card, [*names, *texts])
    for name, text in texts.items():
        write_atomic(folder / name, text)
    written = [*names, *texts]
    named = plain_name(card["name"])
    summary = f"Sparse-attention flow {named}, IR {card['ir_hash']}"
    checksums.write(folder, [*written, write_wheel(folder, written, named, card["key"], summary)])


def doubts(found: Mapping[str, Any], key: str) -> list[str]:
    """What is wrong with a certificate beside a program: of another one, counts that cannot be, a bound that they do
    not give, or a sentence that says something else.

    Args:
        found: as `read` gives it.
    """
    from evaluators.certify import Certificate, rate_bound

    said = []
    if found["key"] != key:
        said.append(f"it is of {visible(found['key'], 80)}")
    items, dense, flow, lost, gained = (found[n] for n in _COUNTS)
    if not (0 <= lost <= dense <= items <= _MOST_ITEMS and 0 <= gained <= items - dense) or (
        flow != dense - lost + gained
    ):
        return [*said, "its counts cannot be"]
    try:
        bound = rate_bound(lost, items, found["confidence"])
    except ValueError as error:
        return [*said, str(error)]
    if not abs(bound - found["bound"]) <= 1e-9:
        return [*said, f"its counts give {bound:.6g}, not {found['bound']:.6g}"]
    made = Certificate(**{f.name: found[f.name] for f in fields(Certificate)})
    if found["words"] != made.words:
        said.append(f"its words are not those of its counts: {made.words}")
    return said
