"""Measure again what the README and docs/ quote, one command after the other: python -m benchmarks

Results go to runs/bench, a folder for each command. A command that lacks something (a GPU, a second one, SGLang)
says what and is left out; one that fails does not keep the next from running. Exit status 1 if any failed.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from benchmarks.needs import LACKING

ROOT = Path(__file__).parent.parent
_ENGINE = "serving --device cuda --random-weights --random-kv --new-tokens 24 --rounds 2 --flows"
_SGLANG = "serving_sglang --random-kv --ahead 2"
COMMANDS = (
    "language",
    "compile_latency --flows block_topk quest lserve snapkv twilight",
    "engine_cpu",
    "calibrate",
    (
        "recall --files runs/bench/04-calibrate/loki.py runs/bench/04-calibrate/double_sparsity.py "
        "runs/bench/04-calibrate/pqcache.py"
    ),
    "rounding",
    "kernels",
    "selections",
    "flows --flows block_topk,quest,gqa_block_topk --shapes 16x32768x32x8,32x32768x20x1,1x32768x32x8",
    "tuning",
    "crossover --as-written",
    "parity --device cuda --case glm-4.7-flash:3 --case glm-4.7-flash:8 --case minimax-m2.7:2",
    (
        f"{_ENGINE} dense,block_topk@64,block_topk@16,quest@64 --model qwen3-1.7b --batch 1,8,16,64 "
        "--context 8000,32000,128000"
    ),
    f"{_ENGINE} dense,block_topk@64 --model qwen3-8b --batch 1,16 --context 8000,32000,128000 --no-share",
    f"{_ENGINE} dense,block_topk@64 --model qwen3-8b --batch 16 --context 32000 --no-share --tp 2",
    f"{_ENGINE} dense,block_topk@64 --model glm-4.7-flash --batch 1,8,16 --context 8000,32000,128000 --no-share",
    f"{_SGLANG} --model qwen3-1.7b --page 64 --sets 16x8192 64x8192 16x16384 16x32000",
    f"{_SGLANG} --model qwen3-1.7b --page 64 --sets 1x8192 4x12288 24x20000 --crossover 1x20480,4x8192,16x4096",
    f"{_SGLANG} --model qwen3-1.7b --page 16 --sets 16x8192 64x8192 16x16384 16x32000",
    (
        f"{_SGLANG} --model glm-4.7-flash --page 64 --memory 0.9 --prefill fa3 --sets 16x16384 32x16384 16x65536 "
        "8x131072 --dense fa3,flashinfer,flashmla@32x16384,triton@32x16384 --flows block_topk --profile"
    ),
    f"{_SGLANG} --model minimax-m2-layers --page 64 --memory 0.92 --sets 16x16384 --flows block_topk",
    f"{_SGLANG} --model qwen3-8b --tp 2 --memory 0.85 --sets 16x32000 32x16384",
    "candidate_seconds --model smollm2-135m",
    "candidate_seconds --model glm-4.7-flash --random-weights --accuracy-model retrieval-mla --plan mla-gpu",
    "modelled --model smollm2-135m",
    "modelled --model qwen3-8b --random-weights --contexts 8192,30720",
    "modelled --model glm-4.7-flash --random-weights --contexts 4096,16384",
    "serving_needles",
    (
        "serving_needles --model retrieval-mla --dense triton --batch 32 "
        "--tasks pair_recall:512:64:31 pair_recall:1024:64:31 pair_recall:2048:32:31"
    ),
)


def folder(number: int, command: str) -> str:
    """Where the results of the command at a place in the list go."""
    return f"{number:02}-{command.partition(' ')[0]}"


def run_all(commands: Iterable[str], out: Path) -> dict[str, int]:
    """Exit status of every command, which gets a folder of its own in `out`."""
    found = {}
    for number, command in enumerate(commands, 1):
        name, *options = shlex.split(command)
        print(f"== python -m benchmarks.{command}", flush=True)
        line = [sys.executable, "-m", f"benchmarks.{name}", *options]
        line += ["--out", str(out / folder(number, command))]
        found[command] = subprocess.run(line, cwd=ROOT, check=False).returncode
    return found


def main() -> int:
    """Run all; say what became of each."""
    found = run_all(COMMANDS, ROOT / "runs" / "bench")
    print("== results in runs/bench")
    for command, status in found.items():
        words = {0: "measured", LACKING: "not possible here"}.get(status, f"failed with status {status}")
        print(f"{words}: {command}")
    return int(any(status not in (0, LACKING) for status in found.values()))


if __name__ == "__main__":
    raise SystemExit(main())
