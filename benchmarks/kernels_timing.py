"""Tables for the kernel benchmarks: launches that do nothing, and a measured bandwidth to compare with."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
import triton.language as tl

from vortex_core.compiler.triton.tuning.timing import Launch, graph_time
from vortex_core.kernels.dependent import await_previous
from vortex_core.kernels.runtime import dependent_launch, multiprocessors


@triton.jit
def null_kernel(PDL: tl.constexpr):
    """Waits its turn and does nothing."""
    await_previous(PDL)


def null_chain_time(length: int) -> float:
    """Microseconds of `length` kernels that do nothing, a block an SM each, launched as our kernels are."""
    device = torch.device("cuda")
    blocks = multiprocessors(device)
    early = dependent_launch(device)

    def chain() -> None:
        for _ in range(length):
            null_kernel[(blocks,)](num_warps=4, **early)

    return graph_time([chain])


def count_launches(step: Launch) -> int:
    """Triton kernels that `step` launches."""
    count = 0
    run = triton.JITFunction.run

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        return run(*args, **options)

    with mock.patch.object(triton.JITFunction, "run", counted):
        step()
    return count


def copy_bandwidth() -> float:
    """Best bytes/s of a large device-to-device copy, read plus written."""
    from triton.testing import do_bench

    source = torch.randn(2 * 2**30 // 2, device="cuda", dtype=torch.bfloat16)
    target = torch.empty_like(source)
    moved = 2 * source.numel() * source.element_size()
    best = 0.0
    # `copy_` and an elementwise kernel take different paths; the better one is the ceiling.
    for move in (lambda: target.copy_(source), lambda: torch.neg(source, out=target)):
        milliseconds = float(do_bench(move, warmup=50, rep=200, return_mode="median"))
        best = max(best, moved / milliseconds * 1e3)
    return best


@dataclass
class Report:
    """Rows of measurements with the machine they were taken on; written as JSON and as a Markdown table."""

    gpu: str
    versions: dict[str, str]
    copy_bytes_per_s: float
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, section: str, **values: Any) -> None:
        row = {"section": section, **values}
        self.rows.append(row)
        print("ROW", json.dumps(row), flush=True)

    def floor_us(self, nbytes: float) -> float:
        """Microseconds in which `nbytes` pass at the measured copy bandwidth."""
        return nbytes / self.copy_bytes_per_s * 1e6

    def write(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(asdict(self), indent=1) + "\n")
        (folder / f"{name}.md").write_text(self.markdown())

    def markdown(self) -> str:
        versions = ", ".join(f"{k} {v}" for k, v in self.versions.items())
        copy = f"{self.copy_bytes_per_s / 1e12:.3f} TB/s"
        lines = [
            "# Kernel benchmarks",
            "",
            f"{self.gpu}; {versions}; best copy {copy} (read + written).",
            "Medians of CUDA graph replays. The floor is the bytes that must be read over that bandwidth.",
        ]
        for section in dict.fromkeys(row["section"] for row in self.rows):
            rows = [row for row in self.rows if row["section"] == section]
            columns = [c for c in dict.fromkeys(k for row in rows for k in row) if c != "section"]
            lines += ["", f"## {section}", "", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
            lines += ["| " + " | ".join(_cell(row.get(c)) for c in columns) + " |" for row in rows]
        return "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}" if abs(value) < 100 else f"{value:.1f}"
    return str(value)
