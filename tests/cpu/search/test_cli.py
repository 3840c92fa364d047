"""The command line in process: help that teaches, JSON, one clear message per mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from search.cli import main
from search.cli.flows import TARGETS
from search.commands.check import kernel_lines

COMMANDS = (
    ["check"],
    ["explain"],
    ["evaluate"],
    ["flows"],
    ["tune"],
    ["leaderboard"],
    ["show"],
    ["report"],
    ["export"],
    ["models"],
    ["models", "fetch"],
    ["doctor"],
)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VORTEX_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> int:
    """Exit status of a command line."""
    try:
        main(list(arguments))
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def document(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("command", [[], *COMMANDS], ids=" ".join)
def test_help_teaches_with_an_example(command: list[str], capsys: pytest.CaptureFixture[str]):
    assert run(*command, "--help") == 0
    text = capsys.readouterr().out
    assert "Example" in text
    assert f"vortex-search {' '.join(command)}".strip() in " ".join(text.split())
    assert "--json" in text


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["check", "qest"], "VF070", "quest"),
        (["check", "./missing.py"], "VF000", "missing.py"),
        (["explain", "quest", "--model", "qwen3-9b"], "VM001", "qwen3-8b"),
        (["explain", "quest", "--gpu", "h20"], "VM002", "h200"),
        (["tune", "qest", "--model", "qwen3-8b"], "VF070", "quest"),
        (["tune", "quest", "--model", "qwen3-9b"], "VM001", "qwen3-8b"),
        (["evaluate", "quest", "--plan", "defualt"], "VV001", "default"),
        (["evaluate", "quest", "--seed", "5000000"], "VS010", "--seed"),
        (["leaderboard", "nothing"], "VS001", "nothing"),
        (["show", "nothing", "c001"], "VS001", "nothing"),
        (["report", "nothing"], "VS001", "nothing"),
        (["export", "nothing"], "VS001", "nothing"),
        (["models", "fetch", "smolm2-135m"], "VM001", "smollm2-135m"),
        (["--campaign", "defualt"], "VS001", "default"),
        (["--proposer", "gramar"], "VS001", "grammar"),
        (["--model", "smollm"], "VM001", "smollm2-135m"),
        (["--time-budget", "soon"], "VS010", "10m"),
        (["--run", "../evil"], "VS010", "--run"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_gets_one_message_and_status_2(
    arguments: list[str], code: str, words: str, capsys: pytest.CaptureFixture[str]
):
    assert run(*arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith(code)
    assert words in said
    assert "Traceback" not in said
    assert run(*arguments, "--json") == 2
    error = document(capsys)["error"]
    assert error["code"] == code
    assert error["remedy"]


HOSTILE = {
    "VF001": "def oops(:\n",
    "VF002": "import os\n",
    "VF003": "x = 1\n",
}


@pytest.mark.parametrize("code", sorted(HOSTILE))
def test_a_flow_that_is_none_is_refused_at_its_line(
    code: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    flow = tmp_path / "flow.py"
    flow.write_text(HOSTILE[code])
    assert run("check", str(flow), "--json") == 2
    assert document(capsys)["error"]["code"] == code


def test_a_shape_error_names_the_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    flow = tmp_path / "flow.py"
    flow.write_text(
        "from vortex_core import ops, vFlow\n\n\nclass Bad(vFlow):\n"
        "    def forward_indexer(self, q, cache):\n        return ops.topk(q.sum('page'))\n"
    )
    assert run("check", str(flow)) == 2
    said = capsys.readouterr().err
    assert "flow.py:6" in said
    assert "fix:" in said


def test_a_good_flow_is_the_same_by_name_and_by_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from vortex_core import library

    flow = tmp_path / "mine.py"
    flow.write_text(library.source("quest"))
    assert run("check", "quest", "--json") == 0
    by_name = document(capsys)
    assert run("check", str(flow), "--json") == 0
    assert document(capsys)["key"] == by_name["key"]


def test_check_shows_what_a_page_keeps(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    flow = tmp_path / "mine.py"
    flow.write_text(
        "from vortex_core import Knobs, ops, vFlow\n"
        "class W(vFlow):\n"
        "    knobs = Knobs(page_size=16)\n"
        "    def create_cache(self, page):\n"
        "        return {'keys': page.state(dim=page.head_dim, row=page.size, dtype='int4'),\n"
        "                'odd': page.state(row=page.size, part=9, dtype='bits')}\n"
        "    def forward_cache(self, page):\n"
        "        k = page.k.rename(token='row')\n"
        "        return {'keys': k, 'odd': k.slice('dim', 0, 9).rename(dim='part')}\n"
        "    def forward_indexer(self, q, cache):\n"
        "        s = (q * cache['keys']).sum('dim').max('row', 'head')\n"
        "        return ops.topk(s + cache['odd'].sum('part').max('row'))\n"
    )
    assert run("check", str(flow), "--model", "qwen3-8b", "--json") == 0
    keys, odd = (found := document(capsys)["page_states"])["states"]
    assert keys["dims"] == {"dim": 128, "row": 16}
    assert keys["scale_shared_along"] == "row"
    assert (keys["bytes"], keys["padding_bytes"]) == (128 * 16 // 2 + 2 * 128, 0)  # a scale for each channel
    # Bits are packed along channels or what comes nearest, here `part`: 9 of 16 bits.
    assert (odd["bytes"], odd["padding_bytes"]) == (16 * 16 // 8, 16 * 7 // 8)
    assert found["share_of_kv"] == pytest.approx((keys["bytes"] + odd["bytes"]) / (2 * 16 * 128 * 2))
    assert run("check", str(flow)) == 0
    assert "one scale along row" in (said := capsys.readouterr().out)
    assert "1280 B" in said


def test_check_shows_what_a_request_keeps(capsys: pytest.CaptureFixture[str]):
    assert run("check", "freekv", "--model", "qwen3-8b", "--json") == 0
    found = document(capsys)["page_states"]
    mean, before = sorted(found["states"], key=lambda s: s["scope"])
    assert (mean["scope"], before["scope"], before["bytes"]) == ("page", "request", 4 * 128 * 2)
    assert found["bytes_a_request"] == 8 * 4 * 128 * 2, "of all kv heads"
    assert found["share_of_kv"] == pytest.approx(mean["share_of_kv"]) and before["share_of_kv"] == 0
    assert run("check", "freekv", "--model", "qwen3-8b") == 0
    assert "1024 B a request and kv head" in capsys.readouterr().out


def test_check_for_a_gpu_shows_what_kernels_take(capsys: pytest.CaptureFixture[str]):
    from vortex_core.compiler.triton.ahead import GPUS

    assert run("check", "twilight_quest", "--model", "qwen3-8b", "--target", "sm_90a", "--json") == 0
    kernels = {row["kernel"]: row for row in document(capsys)["kernels"]}
    assert {"update_kernel", "score_kernel", "refine_kernel"} <= set(kernels)
    assert all(0 < row["registers"] <= 255 and row["shared_bytes"] < 232_448 for row in kernels.values())
    assert tuple(GPUS) == TARGETS
    assert kernel_lines([], "sm_90a") == ["kernels for sm_90a: attention's alone, which fit"]
    assert run("check", "twilight_quest", "--target", "sm_90") == 2
    assert "sm_90a" in capsys.readouterr().err


def test_flows_lists_the_library(capsys: pytest.CaptureFixture[str]):
    assert run("flows", "--json") == 0
    assert {"dense", "block_topk", "quest", "streaming"} <= {flow["name"] for flow in document(capsys)}
    assert run("flows") == 0
    assert "arXiv" in capsys.readouterr().out


def test_explain_adds_up(capsys: pytest.CaptureFixture[str]):
    assert run("explain", "quest", "--model", "qwen3-8b", "--gpu", "h200", "--json") == 0
    found = document(capsys)
    layer = found["layer"]
    parts = [v for k, v in layer.items() if k.startswith("bytes:")]
    assert sum(parts) == pytest.approx(layer["bytes in all"])
    assert found["how"] == "modelled"
    assert layer["state bytes per token, share of KV"] == pytest.approx(2 / 16 / 2)
    assert found["step"]["seconds"] == pytest.approx(sum(found["step"]["seconds_by_part"].values()))
    assert found["step"]["speedup"] > 1
    assert run("explain", "dense", "--json") == 0
    assert document(capsys)["step"]["speedup"] == pytest.approx(1.0)


def test_models_says_what_is_missing(capsys: pytest.CaptureFixture[str]):
    assert run("models", "--json") == 0
    found = {model["name"]: model for model in document(capsys)}
    big = found["minimax-m2.7"]
    assert not big["present"]
    assert any("need" in words for words in big["missing"])
    assert "download" in big["command"]
    assert run("models") == 0
    assert "minimax-m2.7" in capsys.readouterr().out


def test_doctor_shows_no_secret_and_tries_the_jail(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-very-secret")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert run("doctor", "--json") == 0
    text = capsys.readouterr().out
    assert "sk-very-secret" not in text
    findings = json.loads(text)["findings"]
    by_name: dict[str, list[dict[str, str]]] = {}
    for finding in findings:
        by_name.setdefault(finding["name"], []).append(finding)
    assert by_name["ANTHROPIC_API_KEY"][0]["words"] == "set"
    assert by_name["OPENAI_API_KEY"][0]["words"] == "not set"
    assert "not reachable" in by_name["hub"][0]["words"]
    assert len(by_name["sandbox"]) >= 4
    assert all(finding["level"] == "ok" for finding in by_name["sandbox"])


def test_doctor_warns_where_another_distribution_claims_a_name(monkeypatch: pytest.MonkeyPatch):
    from search.commands import doctor

    claims = {"agents": ["openai-agents"], "search": ["vortex-search"]}
    monkeypatch.setattr(doctor.metadata, "packages_distributions", lambda: claims)
    found = {finding.words: finding.level for finding in doctor.import_names()}
    assert found["agents is also claimed by openai-agents"] == "warning"
    assert found["search is ours alone"] == "ok"


def test_usage_errors_are_not_tracebacks(capsys: pytest.CaptureFixture[str]):
    assert run("chekc", "quest") == 2
    assert run("check") == 2
    assert run("--no-such-option") == 2
    assert "Traceback" not in capsys.readouterr().err
