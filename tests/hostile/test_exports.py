"""Exported folders of strangers: every file is read with care, and none is believed for what it says."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evaluators.certify import Certificate, rate_bound
from search.campaign.archive import Archive
from search.cli import main
from search.commands import certificate, checksums
from search.commands.certify import certify_items
from search.commands.export import choose, export
from search.commands.verify import verify
from search.log.run import campaign_of, open_run, read_state
from tests.synthetic_runs import write_run
from vortex_core.errors import VortexError

FILES = ("flow.py", "card.json", "program.json", "knobs.json", "checksums.txt", "certificate.json", "flow.safetensors",
         "flow.npz")  # fmt: skip
NEEDED = FILES[:5]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    write_run(root, "r", 12)
    with open_run("r", readonly=True, root=root) as run:
        state = read_state(run)
        config = campaign_of(state)
        entry = choose(Archive(state, config.objective), "r", 1, winner=False)
        return export(run, state, config, entry, root / "good")


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "theirs"))


def test_what_was_exported_is_fine(folder: Path) -> None:
    assert all(check.agrees for check in verify(folder, measure=False))


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 42)


ODD: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "pipe": _pipe,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "dangling": lambda path: path.symlink_to("nowhere"),
    "loop": lambda path: path.symlink_to(path.name),
    "folder": lambda path: path.mkdir(),
    "huge": _huge,
    "binary": lambda path: path.write_bytes(bytes(range(256)) * 9),
    "empty": lambda path: path.touch(),
    "list": lambda path: path.write_text("[]"),
    "deep": lambda path: path.write_text("[" * 100_000),
}


@pytest.mark.parametrize("made", ODD)
@pytest.mark.parametrize("name", FILES)
@pytest.mark.timeout(60)
def test_a_file_that_is_none(folder: Path, name: str, made: str, capsys: pytest.CaptureFixture[str]) -> None:
    if made == "missing" and name not in NEEDED:
        return  # so it is in every export without learned values and certificate
    (folder / name).unlink(missing_ok=True)
    ODD[made](folder / name)
    with pytest.raises(SystemExit) as ended:
        main(["verify", str(folder), "--quick", "--json"])
    said = capsys.readouterr()
    assert ended.value.code in (1, 2)
    assert "Traceback" not in said.err + said.out and "VS091" not in said.err + said.out
    answer = json.loads(said.out)
    assert not answer["agrees"] if "agrees" in answer else answer["error"]["code"]


def _promise(folder: Path, **changes: Any) -> None:
    """Lay a certificate beside a flow, with checksums that hold: whoever forges one forges them too."""
    card = json.loads((folder / "card.json").read_text())
    made = Certificate(
        card["name"],
        card["key"],
        card["ir_hash"],
        card["model"],
        10,
        8,
        8,
        1,
        1,
        0.9,
        rate_bound(1, 10),
        (5, 5),
    )
    asked = {"prompt": "{a}", "answer": "{b}", "metric": "contains", "max_new_tokens": 4}
    found = {"schema": certificate.SCHEMA, **made.to_json(), "items_file": "x.jsonl", "items_sha256": "0" * 64,
             "asked": asked, "certified_at": "today", "device": "a CPU", "certified_with": {}} | changes  # fmt: skip
    (folder / "certificate.json").write_text(json.dumps(found))
    checksums.write(folder, [*checksums.read(folder), "certificate.json"])


FORGED: dict[str, dict[str, Any]] = {
    "a better bound": {"bound": 0.0},
    "no bound": {"bound": float("nan")},
    "a bound of text": {"bound": "0"},
    "no confidence": {"confidence": float("nan")},
    "more lost than asked": {"lost": 11},
    "less than none lost": {"lost": -1},
    "none lost, by its sentence": {"words": "It loses nothing."},
    "a sentence for the terminal": {"words": "\x1b[2J"},
    "a sentence that is none": {"words": [1]},
    "counts that do not add up": {"flow_right": 10},
    "countless items": {"items": 10**400},
    "halves": {"lost": 0.5},
    "truth": {"lost": True},
    "another program": {"key": "0" * 16},
    "another schema": {"schema": 5},
    "how it was asked": {"asked": {}},
    "which items": {"items_sha256": "<script>"},
}  # fmt: skip


@pytest.mark.parametrize("changes", FORGED.values(), ids=FORGED)
def test_a_forged_certificate_is_not_believed(folder: Path, changes: dict[str, Any]) -> None:
    _promise(folder, **changes)
    code = None
    try:
        agrees = _certificate(folder)
    except VortexError as error:
        agrees, code = False, error.code
    assert not agrees
    assert code in (None, "VS013")


def test_a_certificate_that_holds_is_believed(folder: Path) -> None:
    _promise(folder)
    assert _certificate(folder)


def _certificate(folder: Path) -> bool:
    return next(check.agrees for check in verify(folder, measure=False) if check.name == "certificate")


@pytest.mark.parametrize("changes", [*FORGED.values(), None], ids=[*FORGED, "no JSON"])
def test_a_run_with_a_forged_certificate_is_not_exported_with_it(
    folder: Path, tmp_path: Path, changes: dict[str, Any] | None
) -> None:
    _promise(folder, **(changes or {}))
    key = json.loads((folder / "card.json").read_text())["key"]
    (tmp_path / "certificates").mkdir()
    kept = tmp_path / "certificates" / f"{key}.json"
    kept.write_bytes((folder / "certificate.json").read_bytes() if changes is not None else b"\xff{")
    with pytest.raises(VortexError, match="VS013"):
        certificate.of_run(tmp_path, key)


def test_checksums_of_something_else_are_no_checksums(folder: Path) -> None:
    checksums.write(folder, ["card.md"])
    found = next(iter(verify(folder, measure=False)))
    assert found.name == "checksums" and not found.agrees and "flow.py is not listed" in found.words


CARDS: list[object] = [None, 5, "\x1b[2J", [], {}, [[]], {"x": {"y": None}}, float("nan")]


@pytest.mark.timeout(120)
def test_forged_cards_end_in_a_code_and_reach_no_terminal(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = json.loads((folder / "card.json").read_text())
    for name in ("key", "ir_hash", "model", "accuracy_model", "plan", "metrics", "seeds"):
        for value in CARDS:
            (folder / "card.json").write_text(json.dumps(card | {name: value}))
            with pytest.raises(SystemExit) as ended:
                main(["verify", str(folder), "--quick"])
            said = capsys.readouterr()
            assert ended.value.code in (1, 2), (name, value)
            assert not any(word in said.out + said.err for word in ("Traceback", "VS091", "\x1b")), (
                name,
                value,
            )


@pytest.mark.parametrize(
    "name", ["name", "doc", "found_by", "metrics", "plan", "statement", "devices", "seeds"]
)
def test_nothing_is_certified_beside_a_forged_card(folder: Path, name: str) -> None:
    card = json.loads((folder / "card.json").read_text())
    certificate.check_whole(folder, card["key"])
    codes = []
    for value in (5, [[]], {"x": 5}):
        (folder / "card.json").write_text(json.dumps(card | {name: value}))
        checksums.write(folder, list(checksums.read(folder)))
        try:
            certificate.check_whole(folder, card["key"])
        except VortexError as error:
            codes.append(error.code)
    assert set(codes) == {"VS013"}


ROW = {"prompt": "k1 v2 n3 k1", "answer": "v2"}


@pytest.mark.parametrize(
    ("rows", "changes", "code", "said"),
    [
        ([ROW, ROW], {}, "VS010", "row 2 is row 1 again"),
        ([ROW | {"answer": " "}], {}, "VV002", "its answer is empty"),
        ([ROW | {"prompt": "k1 \ud800"}], {}, "VV002", "surrogate"),
        ([ROW], {"prompt": "{prompt.__class__}"}, "VS010", "no plain {name}"),
        ([ROW], {"prompt": "{prompt:>9999999999999}"}, "VS010", "no plain {name}"),
        ([ROW], {"answer": "{0}{"}, "VS010", "--answer"),
        ([ROW], {"answer": "{x}"}, "VV002", "it has no 'x'"),
        ([ROW], {"confidence": 0.9999999999999999}, "VS010", "--confidence"),
        ([ROW], {"confidence": float("nan")}, "VS010", "--confidence"),
        ([ROW], {"max_new_tokens": 10**9}, "VS010", "--max-new-tokens"),
        ([ROW], {"metric": "nope"}, "VS010", "--metric"),
        ([], {}, "VS010", "at least one row"),
    ],
)
def test_items_that_prove_nothing_are_refused(
    rows: list[dict[str, str]], changes: dict[str, Any], code: str, said: str, tmp_path: Path
) -> None:
    items = tmp_path / "mine.jsonl"
    items.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked: dict[str, Any] = {"prompt": "{prompt}", "answer": "{answer}", "metric": "contains", "max_new_tokens": 1,
                             "confidence": 0.9} | changes  # fmt: skip
    with pytest.raises(VortexError) as caught:
        certify_items("quest", items, model="retrieval-mla", device="cpu", on_batch=lambda n: None, **asked)
    assert caught.value.code == code
    assert said in caught.value.message
