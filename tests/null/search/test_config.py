"""Campaign files: strict, and their errors name the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from search.campaign.session import _comparable, load_library
from search.cli.console import duration
from search.config import CAMPAIGNS, PROPOSERS, Screen, load_campaign, load_proposer
from vortex_core import library
from vortex_core.errors import VortexError
from vortex_core.sandbox.load import trace_source


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "campaign.yaml"
    path.write_text(text)
    return str(path)


ARM = "arms: [{name: a, strategy: {kind: evolve}}]\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (ARM + "limts: {}\n", "limts"),
        (ARM + "limits: {candidates: -1}\n", "limits.candidates"),
        ("arms: []\n", "arms"),
        ("arms: [{name: a, strategy: {kind: evolv}}]\n", "evolv"),
        ("arms: [{name: a, strategy: {kind: random}, control: true}]\n", "control"),
        ("arms: [{name: a, strategy: {kind: random}}, {name: a, strategy: {kind: random}}]\n", "repeat"),
        (ARM + "objective: {gates: [{metric: m}]}\n", "at_least or at_most"),
        (ARM + "references: [{flow: quest, knbs: {}}]\n", "knbs"),
        (ARM + "references: [{flow: quest, grid: {budget: []}}]\n", "budget"),
        ("arms: [", "not YAML"),
    ],
)
def test_a_bad_file_is_refused_by_key(tmp_path: Path, text: str, words: str):
    with pytest.raises(VortexError) as error:
        load_campaign(write(tmp_path, text))
    assert error.value.code == "VS002"
    assert words in error.value.message


def test_references_may_be_names_or_carry_knobs(tmp_path: Path):
    found = load_campaign(
        write(tmp_path, ARM + "references: [dense, {flow: quest, knobs: {budget: '512'}}]\n")
    )
    assert [(r.flow, r.knobs) for r in found.references] == [("dense", {}), ("quest", {"budget": "512"})]


def test_a_grid_is_every_combination_of_its_knobs(tmp_path: Path):
    text = "references: [{flow: [quest, nsa], knobs: {keep_last: 2}, grid: {budget: ['64', '128'], page_size: [16]}}]\n"
    (reference,) = load_campaign(write(tmp_path, ARM + text)).references
    assert [(flow, knobs["budget"]) for flow, knobs in reference.each()] == [
        ("quest", "64"), ("quest", "128"), ("nsa", "64"), ("nsa", "128"),
    ]  # fmt: skip
    assert all(k["page_size"] == 16 and k["keep_last"] == 2 for _, k in reference.each())


def test_the_whole_library_has_a_name(tmp_path: Path):
    text = "references: [dense, {flow: library, grid: {budget: ['64', '128']}}]\n"
    _, whole = load_campaign(write(tmp_path, ARM + text)).references
    flows = [flow for flow, _ in whole.each()]
    assert {"quest", "locks", *library.found_names()} <= set(flows) and "dense" not in flows
    assert len(flows) == 2 * (len(library.names()) - 1 + len(library.found_names()))


@pytest.mark.parametrize("kind", ["campaign", "proposer"])
def test_unknown_names_get_near_matches(kind: str):
    load = load_campaign if kind == "campaign" else load_proposer
    wrong = "defualt" if kind == "campaign" else "gramar"
    right = "default" if kind == "campaign" else "grammar"
    with pytest.raises(VortexError) as error:
        load(wrong)
    assert error.value.code == "VS001"
    assert right in error.value.remedy


def test_every_shipped_file_loads():
    for name in CAMPAIGNS.names():
        campaign = load_campaign(name)
        load_proposer(campaign.proposer)
        assert campaign.description
    for name in PROPOSERS.names():
        assert load_proposer(name).description
    assert {"default", "quick"} <= set(CAMPAIGNS.names())


def test_a_specification_is_a_proposer():
    assert load_proposer("openai:m@http://localhost:1/v1").spec == "openai:m@http://localhost:1/v1"


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("10m", 600), ("1.5h", 5400)])
def test_durations(text: str, seconds: float):
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-5", "10d", "0"])
def test_bad_durations(text: str):
    with pytest.raises(VortexError) as error:
        duration(text)
    assert error.value.code == "VS010"


def test_a_reference_may_be_the_path_of_ones_own_flow(tmp_path):
    own = tmp_path / "mine.py"
    own.write_text(library.source("quest"))
    flow, source = load_library(str(own), {})
    assert (flow.key, source) == (library.load("quest").flow.key, own.read_text())
    other, text = load_library(str(own), {"budget": "96"})
    assert (other.knobs.budget, other.ir_hash) == ("96", flow.ir_hash)
    assert other.name.startswith("mine ")
    assert trace_source(text).flow.key == other.key
    with pytest.raises(VortexError, match="VF000"):
        load_library(str(tmp_path / "absent.py"), {})


def test_further_models_of_a_screen_may_have_prompts_of_their_own():
    models = ["qwen3-8b", {"model": "retrieval-mla", "evaluation": "retrieval"}]
    screen = Screen.model_validate({"models": models})
    assert [(m.model, m.evaluation) for m in screen.models] == [
        ("qwen3-8b", None),
        ("retrieval-mla", "retrieval"),
    ]


def test_a_run_begun_before_a_setting_was_there_goes_on_after(tmp_path: Path):
    campaign = load_campaign(write(tmp_path, ARM + "references: [quest]\n")).model_dump(mode="json")
    now = {"campaign": campaign, "model": "m", "seed": 0}
    references = [
        {name: value for name, value in r.items() if name != "grid"} for r in campaign["references"]
    ]
    old = now | {"campaign": campaign | {"references": references}}
    assert _comparable(old) == _comparable(now)
    other = now | {"campaign": campaign | {"references": [{"flow": "nsa"}]}}
    assert _comparable(other) != _comparable(now)
    unknown = now | {"campaign": campaign | {"gone": 1}}
    assert _comparable(unknown) != _comparable(now)
