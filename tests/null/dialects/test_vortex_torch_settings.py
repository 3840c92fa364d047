"""The settings that go with a vortex_torch program become knobs, or are refused with a code that says why."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.null.dialects.programs import BUNDLED
from vortex_core import dialects
from vortex_core.dialects.vortex_torch.settings import Settings
from vortex_core.errors import VortexError
from vortex_core.sandbox.jail import run

GOOD = BUNDLED["block_topk"]


def test_settings_become_knobs() -> None:
    settings = {
        "vortex_block_size": 32, "vortex_topk_val": 61, "topk_ratio": 0.0625, "vortex_block_reserved_bos": 2,
        "vortex_page_reserved_eos": 3, "vortex_layers_skip": [0, 1], "kv_cache_dtype": "fp8_e4m3",
        "vortex_dtype": "fp8_e5m2", "vortex_attention_backend": "trtllm", "mem_fraction_static": 0.85,
        "vortex_workload_chunk_size": 32, "model_path": "m", "disable_radix_cache": True,
    }  # fmt: skip
    found = run(GOOD, "x.py", settings)
    knobs = found.knobs
    assert (knobs.page_size, knobs.keep_first, knobs.keep_last) == (32, 2, 3)
    assert (knobs.dense_layers, knobs.kv_dtype) == ((0, 1), "fp8_e4m3")
    assert knobs.pages(1024) == 32  # everything: 66 blocks are asked for
    assert knobs.pages(32 * 100) == 61 + 2 + 3
    assert knobs.pages(32 * 2000) == 125
    assert [s.dtype for s in found.program.states] == ["fp8_e5m2"]
    assert run(GOOD, "x.py", {"vortex": {"topk_val": 7}}).knobs.budget == "144"


@pytest.mark.parametrize(
    ("policy", "blocks"),
    [
        ("return topk_val + block_reserved_bos + block_reserved_eos;", {100: 32, 6400: 32}),
        (
            """
            // grow slowly
            const int base = topk_val + block_reserved_bos + block_reserved_eos;
            const int extra = cached_block_len / 64;
            return min(base + extra, 40);
            """,
            {100: 33, 639: 40, 6400: 40},
        ),
        (
            "float r = topk_ratio * cached_block_len; return max(topk_val, (int)(r * 2.0f));",
            {100: 30, 1000: 125},
        ),
        (
            "int n = static_cast<int>(0.1f * cached_block_len) + 5 /* slack */; return std::max(n, 8);",
            {10: 8, 100: 15},
        ),
    ],
)
def test_schedule_policies_are_translated(policy: str, blocks: dict[int, int]) -> None:
    options = {"vortex_schedule_policy": policy, "vortex_topk_ratio": 0.0625}
    knobs = run(GOOD, "x.py", options).knobs
    for total, wanted in blocks.items():
        # A partial last block counts: cached_block_len is rounded up.
        assert knobs.pages(16 * total) == min(total, wanted)
        assert knobs.pages(16 * total - 7) == min(total, wanted)


BAD_SETTINGS = [
    ({"vortex_topk_vla": 3}, "VF087", "topk_val"),
    ({"vortex_dtype": "int8"}, "VF087", "bfloat16"),
    ({"vortex_topk_val": "many"}, "VF087", "whole number"),
    ({"vortex_topk_ratio": 2}, "VF087", "from 0 to 1"),
    ({"vortex_layers_skip": 3}, "VF087", "list"),
    ({"kv_cache_dtype": "int4"}, "VF087", "fp8"),
    ({"vortex_kv_int4": True}, "VF081", "fp8"),
    ({"vortex_block_size": 24}, "VF061", "8, 16"),
    ({"vortex_block_reserved_eos": 0}, "VF087", "from 1"),
    ({"vortex_module_name": "unknown"}, "VF089", "probe"),
    (
        {"vortex_schedule_policy": "if (cached_block_len > 9) return 4; return 5;"},
        "VF087",
        "only declarations",
    ),
    ({"vortex_schedule_policy": "return blocks;"}, "VF087", "blocks"),
    ({"vortex_schedule_policy": "int a = 3;"}, "VF087", "returns nothing"),
    ({"vortex_schedule_policy": "return __import__('os');"}, "VF087", "no sum"),
]


@pytest.mark.parametrize(("options", "code", "hint"), BAD_SETTINGS)
def test_bad_settings_are_refused(options: dict[str, object], code: str, hint: str) -> None:
    with pytest.raises(VortexError) as caught:
        run(GOOD, "x.py", options)
    assert caught.value.code == code
    assert hint in str(caught.value)


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"topk_vall": 8}, "vortex_topk_val"), ({"vortex_layers_skip": 0}, "list"),
        ({"vortex_topk_val": 8, "topk_val": 9}, "once"),
        ({"vortex_page_reserved_bos": 1, "block_reserved_bos": 2}, "once"),
    ],
)  # fmt: skip
def test_settings_are_never_ignored_silently(options: dict[str, object], hint: str) -> None:
    with pytest.raises(VortexError, match=f"VF087.*{hint}"):
        Settings.read(options, is_mla=False)


def test_early_names_of_settings_are_known() -> None:
    found = Settings.read(
        {"vortex_page_size": 32, "vortex_page_reserved_bos": 2, "page_size": 1}, is_mla=False
    )
    assert (found.block_size, found.bos) == (32, 2)


def test_bad_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(GOOD)
    (tmp_path / "a.json").write_text("[1]")
    for path, code in ((tmp_path / "b.py", "VF000"), (tmp_path / "a.py", "VF087")):
        with pytest.raises(VortexError) as caught:
            dialects.convert_file(path)
        assert caught.value.code == code
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(VortexError, match="VF087"):
        dialects.convert_file(tmp_path / "a.py")
