"""What the serving benchmark computes beside what it measures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from benchmarks import serving_profile
from benchmarks.serving_needles import Answered, Items, row
from benchmarks.serving_sglang import shapes
from benchmarks.serving_shapes import kv_bytes_per_token, write_config
from benchmarks.serving_speedups import Saved, density_since, table
from vortex_core.engine.models.weights import resolve_model


def test_shapes_keep_contexts_together_and_begin_with_the_largest_batch() -> None:
    assert shapes(["16x8192", "4x32000", "64x8192"]) == ((64, 8192), (16, 8192), (4, 32000))


@pytest.mark.parametrize(
    ("model", "ranks", "want"),
    [
        ("qwen3-8b", 1, 36 * 8 * 128 * 4),
        ("qwen3-8b", 2, 36 * 4 * 128 * 4),
        ("glm-4.7-flash", 2, 47 * 576 * 2),
    ],
)
def test_bytes_of_a_token(tmp_path: Path, model: str, ranks: int, want: int) -> None:
    config = json.loads((write_config(model, tmp_path, 1024) / "config.json").read_text())
    assert kv_bytes_per_token(config, 2, ranks) == want


def test_the_floor_is_the_dense_step_without_the_bytes_not_read() -> None:
    saved = Saved(bytes_per_token=1000, layers=4, bandwidth=1e9, new=10)
    # 8 x (990 + 10) tokens, three of four layers keep a quarter: 8000 * 0.75 * 0.75 * 1000 B at 1 GB/s.
    assert saved.floor_ms(20.0, 8, 990, 0.25, 3) == pytest.approx(20.0 - 4.5)


def test_density_is_that_of_the_steps_between_two_reports() -> None:
    before = {"tokens_there": 100.0, "attended_tokens": 100.0}
    after = {"tokens_there": 300.0, "attended_tokens": 120.0}
    assert density_since(before, after) == pytest.approx(0.1)
    assert density_since(after, after) is None


def test_speed_ups_are_over_the_best_dense_arm_of_the_same_shape() -> None:
    def arm(name: str, ms: float, **status: object) -> dict[str, object]:
        row = {
            "batch": 2, "context": 100, "ms_step": ms, "all_ms": [ms], "tpot_p50_ms": ms, "tpot_p95_ms": ms,
            "tokens": [[1], [2]], "density": status.pop("density", None),
        }  # fmt: skip
        return {"arm": name, "results": [row], "status": status or None}

    arms = [arm("dense:a", 4.0), arm("dense:b", 3.0), arm("vortex:x", 1.5, density=0.5, sparse_layers=4)]
    rows, text = table(arms, Saved(10_000, 4, 1e9, 0), meaningful=True)
    ours = next(row for row in rows if row["arm"] == "vortex:x")
    assert (ours["speedup"], ours["best_dense"], ours["answers_equal_to_dense"]) == (2.0, "dense:b", 2)
    assert ours["floor_ms"] == pytest.approx(2.0)  # 3 ms less 2 x 100 x 0.5 x 10 kB at 1 GB/s
    assert ours["share_of_allowed"] == pytest.approx(2.0 / 1.5, abs=1e-3)
    assert "| vortex:x | 2 | 100 | 1.50 (1.50-1.50) | 1.50 | 1.50 |" in text

    arms += [arm("dense:lost", -1.0), arm("vortex:lost", -0.5, density=0.5, sparse_layers=4)]
    rows, text = table(arms, Saved(10_000, 4, 1e9, 0), meaningful=True)
    lost = next(row for row in rows if row["arm"] == "vortex:lost")
    assert (lost["tok_s"], lost["speedup"], lost["floor_ms"]) == (None, None, None)
    assert lost["best_dense"] == "dense:b"
    assert text.count("lost in jitter") == 2


def test_needle_rows_pair_answers_item_by_item() -> None:
    def answered(scores: list[float], tokens: list[list[int]]) -> Answered:
        return Answered(tokens, scores, None, "hash", 1.0)

    ours = answered([1.0, 1.0, 0.0, 0.0], [[5, 6], [5], [7, 8], [9]])
    theirs = answered([1.0, 0.0, 1.0, 0.0], [[5, 6], [6], [7, 9, 1], [9]])
    found = row("quest", ours, theirs, answered([1.0] * 4, [[1]] * 4))
    assert (found["same_answers"], found["same_first_tokens"]) == (2, 3)
    assert found["same_tokens"] == pytest.approx(4 / 7)
    assert found["difference"]["value"] == 0.0
    assert found["over_dense"]["value"] == -0.5
    assert found["difference"]["low"] < 0.0 < found["difference"]["high"]


def kernel(name: str, start: float, duration: float, launch: int) -> dict[str, object]:
    return {"cat": "kernel", "name": name, "ts": start, "dur": duration, "args": {"correlation": launch}}


def test_a_profiled_step_counts_every_moment_once() -> None:
    events: list[dict[str, object]] = [{"cat": "cpu_op", "name": "x", "ts": 0.0, "dur": 9.0}]
    for step in range(4):
        at = 100.0 * step
        # The merge starts 4 us before the attention kernel that it waits for ends.
        events += [kernel("gemm", at, 10.0, step), kernel("flash_fwd", at + 10, 20.0, step)]
        events += [kernel("combine", at + 26, 6.0, step), kernel("copy", at + 60, 1.0, 1000 + step)]
    found = serving_profile.step_of(events)
    assert (found.replays, found.period_us, found.busy_us, found.outside) == (4, 100.0, 32.0, 1.0)
    assert [(k.name, k.count, k.us, k.exposed_us) for k in found.kernels] == [
        ("flash_fwd", 1, 20.0, 20.0), ("gemm", 1, 10.0, 10.0), ("combine", 1, 6.0, 2.0),
    ]  # fmt: skip
    assert found.matching(serving_profile.ATTENTION) == 22.0
    assert "| `flash_fwd` | 1 | 20.00 | 20.0 | 20.0 |" in serving_profile.page("dense:fa3", 2, 1000, found)


def test_what_cannot_be_profiled_says_why() -> None:
    with pytest.raises(ValueError, match="no trace"):
        serving_profile.read([])
    with pytest.raises(ValueError, match="no captured graph"):
        serving_profile.step_of([kernel("gemm", 0.0, 1.0, 1)])
    with pytest.raises(ValueError, match="1 decode steps"):
        serving_profile.step_of([kernel("a", 0.0, 1.0, 1), kernel("b", 1.0, 1.0, 1)])


def test_pairs_are_asked_with_their_key_as_the_start_of_the_answer() -> None:
    tokenizer = AutoTokenizer.from_pretrained(resolve_model("retrieval-mla").directory)
    items = Items(tokenizer, ["pair_recall:128:3:2"], seed=0)
    asked = [list(item.prompt) for item in items.items]
    assert items.starts is not None
    assert [[*ids, *start] for ids, start in zip(items.prompts, items.starts, strict=True)] == asked
    right = [tokenizer.encode(item.answer, add_special_tokens=False)[0] for item in items.items]
    found = [[*start, token] for start, token in zip(items.starts, right, strict=True)]
    assert items.new == 2 and items.answered(found, None, None, 0.0).scores == [1.0] * 3
    found[1][1] = items.starts[1][0]  # a key is no answer
    assert items.answered(found, None, None, 0.0).scores == [1.0, 0.0, 1.0]
    for tasks in (["pair_recall:128:1:2", "needle_single:1024:1"], ["pair_recall:128:0"]):
        with pytest.raises(SystemExit, match="one kind"):
            Items(tokenizer, tasks, seed=0)
