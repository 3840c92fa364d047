"""Bundles, settings and command lines of served flows."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests import sample_flows
from vortex_core import library
from vortex_core.errors import VortexError
from vortex_core.ir.flow import Flow
from vortex_core.serving.bundle import load_flow, write_flow
from vortex_core.serving.launch import check_environment, launch_command, main
from vortex_core.serving.plan import check_servable
from vortex_core.serving.settings import Settings


@pytest.fixture
def quest() -> Flow:
    return library.load("quest").flow


def test_a_bundle_keeps_its_identity(quest: Flow, tmp_path: Path) -> None:
    again = load_flow(str(write_flow(quest, tmp_path / "b.json")))
    assert (again.ir_hash, again.key, again.name) == (quest.ir_hash, quest.key, "quest")
    assert load_flow("quest").key == quest.key


def test_an_exported_directory_is_a_bundle(quest: Flow, tmp_path: Path) -> None:
    data = quest.to_json()
    (tmp_path / "program.json").write_text(json.dumps(data["program"]))
    (tmp_path / "knobs.json").write_text(json.dumps(data["knobs"]))
    assert load_flow(str(tmp_path)).key == quest.key


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda p: "no_such_flow", "no flow named"),
        (lambda p: str(p), "program.json"),
        (lambda p: str(p / "flow.py"), "Python source"),
        (lambda p: str(p / "none.json"), "none.json"),
        (lambda p: str((p / "x.json", (p / "x.json").write_text("[1]"))[0]), "not a bundle"),
        (lambda p: str((p / "y.json", (p / "y.json").write_text("{"))[0]), "no JSON"),
    ],
)
def test_what_is_no_bundle_is_refused_with_the_reason(make, why: str, tmp_path: Path) -> None:
    with pytest.raises(VortexError, match=why) as caught:
        load_flow(make(tmp_path))
    assert caught.value.code == "VE030"


def test_settings_travel_in_the_environment() -> None:
    settings = Settings("/x/flow.json", "fa3", "torch", "/tmp/s.json")
    assert Settings.from_environment(settings.to_environment()) == settings
    assert Settings.from_environment({}) is None
    with pytest.raises(VortexError, match="VORTEX_SERVING_BACKEND"):
        Settings.from_environment({"VORTEX_SERVING_FLOW": "quest", "VORTEX_SERVING_BACKEND": "oracle"})


def test_the_command_brings_what_the_flow_needs(quest: Flow) -> None:
    launch = launch_command(quest, Settings("/b.json", "fa3"), "org/model", ["--tp-size", "2"], "/opt/py")
    assert launch.arguments == (
        "/opt/py", "-m", "sglang.launch_server", "--model-path", "org/model",
        "--attention-backend", "vortex", "--page-size", "16", "--tp-size", "2",
    )  # fmt: skip
    assert launch.variables == {"VORTEX_SERVING_FLOW": "/b.json", "VORTEX_SERVING_PREFILL": "fa3"}
    assert launch.shell.startswith("VORTEX_SERVING_FLOW=/b.json VORTEX_SERVING_PREFILL=fa3 /opt/py -m")


def test_page_sizes_that_do_not_fit_are_refused_before_anything_starts(quest: Flow) -> None:
    settings = Settings("/b.json")
    assert "64" in launch_command(quest, settings, "m", ["--page-size", "64"], "p").arguments
    for options in (["--page-size", "8"], ["--page-size=24"]):
        with pytest.raises(VortexError, match="a multiple of it") as caught:
            launch_command(quest, settings, "m", options, "p")
        assert caught.value.code == "VE032"


def test_fp8_and_request_local_flows_bring_their_options(quest: Flow) -> None:
    fp8 = Flow("f", quest.program, quest.knobs.with_(kv_dtype="fp8_e4m3"))
    arguments = launch_command(fp8, Settings("/b"), "m", (), "p").arguments
    assert arguments[arguments.index("--kv-cache-dtype") + 1] == "fp8_e4m3"
    local = library.load("running_average").flow
    assert local.program.is_request_local
    assert "--disable-radix-cache" in launch_command(local, Settings("/b"), "m", (), "p").arguments


def test_what_a_captured_step_cannot_do_is_refused(quest: Flow) -> None:
    with pytest.raises(VortexError, match="reuse_steps=4"):
        check_servable(quest.program, quest.knobs.with_(reuse_steps=4))
    with pytest.raises(VortexError, match="reuse_steps=4"):
        launch_command(library.load("lserve").flow, Settings("/b"), "m", (), "p")
    mass = next(b for b in map(library.load, library.names()) if b.program.needs_mass)
    with pytest.raises(VortexError, match="attention mass"):
        check_servable(mass.program, mass.knobs.with_(reuse_steps=1))
    rotary = sample_flows.load("rotary")
    with pytest.raises(VortexError, match="rotary frequencies"):
        check_servable(rotary.program, rotary.knobs)


def test_an_environment_without_sglang_says_so() -> None:
    with pytest.raises(VortexError, match="sglang is not installed") as caught:
        check_environment(sys.executable)
    assert caught.value.code == "VE037"
    with pytest.raises(VortexError, match="does not run"):
        check_environment("/no/such/python")


def test_the_exported_script_prints_its_command(quest: Flow, tmp_path: Path, capsys) -> None:
    data = quest.to_json()
    (tmp_path / "program.json").write_text(json.dumps(data["program"]))
    (tmp_path / "knobs.json").write_text(json.dumps(data["knobs"]))
    (tmp_path / "card.json").write_text(json.dumps({"model_source": "org/found-on"}))
    assert main(tmp_path, ["--print", "--port", "30001"]) == 0
    said = capsys.readouterr().out
    assert f"VORTEX_SERVING_FLOW={tmp_path}" in said
    assert "--model-path org/found-on --attention-backend vortex --page-size 16 --port 30001" in said
    assert main(tmp_path, ["--print", "--model", "x", "--page-size", "4"]) == 2
    assert "VE032" in capsys.readouterr().err
