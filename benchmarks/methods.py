"""The library side by side: recall, state bytes and step time of every method. python -m benchmarks.methods

Joins what other commands measured: `benchmarks.recall` (recall.json: attention of a model, page 16) and, where it was
timed, `benchmarks.programs` (programs.md: one layer on a GPU, page 64). Writes benchmarks/results/methods.md.
"""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import dataclass
from pathlib import Path

from benchmarks.recall import PAGE

RATIO = 0.1
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Method:
    """One row: shares of the oracle's and of kept pages, bytes, and microseconds of a step over what its bytes take."""

    flow: str
    recall: float
    relative: float
    beyond: float
    state_share: float
    step: str
    over_floor: str


def timed(text: str) -> dict[str, tuple[str, str]]:
    """Microseconds a step and their multiple of the floor, by library flow, of the table in programs.md."""
    found: dict[str, tuple[str, str]] = {}
    header: list[str] = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split("|")]
        if "over_floor" in cells and "flow" in cells:
            header = cells
        elif header and len(cells) == len(header) and cells[0] == "library":
            row = dict(zip(header, cells, strict=True))
            found[row["flow"]] = row["step_us"], row["over_floor"]
    return found


def methods(recall: str, programs: str) -> list[Method]:
    """Every flow of the recall table at 10% of the context, best first."""
    times = timed(programs)
    rows = [r for r in json.loads(recall)["rows"] if r["page"] == PAGE and r["ratio"] == RATIO]
    made = [
        Method(
            r["flow"],
            r["recall"],
            r["relative"],
            r["beyond"],
            r["state_share"],
            *times.get(r["flow"], ("", "")),
        )
        for r in rows
    ]
    return sorted(made, key=lambda m: -m.relative)


_PAGE = """# The library side by side

{stamp}

Made by `python -m benchmarks.methods` from [recall.md](recall.md) (SmolLM2, page 16, budget 10% of the context) and
[programs.md](programs.md) ({gpu}, 16 x 32k, page 64, 2,048 tokens; one layer, with its floor, the time its bytes
take). Flows that need weights and were not calibrated have no row; without a time, a flow was not there when steps were
last timed. Recall is not accuracy: [skills.md](skills.md).

- **of oracle**: recall over that of the best pages of the same number, chosen with hindsight per kv head.
- **beyond kept**: the same for mass outside the always-kept pages; 0 is no better than those alone.
- **state/KV**: bytes of page states per byte of bf16 KV.

| method | recall | of oracle | beyond kept | state/KV | step, us | over its floor |
|---|---|---|---|---|---|---|
{rows}
"""


def page(found: list[Method], stamp: str, gpu: str) -> str:
    """The report."""
    rows = "\n".join(
        f"| {m.flow} | {' | '.join(f'{x:.3f}' for x in (m.recall, m.relative, m.beyond, m.state_share))} | "
        f"{m.step} | {m.over_floor} |"
        for m in found
    )
    return _PAGE.format(stamp=stamp, gpu=gpu, rows=rows)


def main() -> None:
    """Join, write."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    recall, programs = (RESULTS / "recall.json").read_text(), (RESULTS / "programs.md").read_text()
    stamps = re.findall(r"^\*Measured .*\*$", (RESULTS / "recall.md").read_text(), re.MULTILINE)
    gpu = re.search(r"NVIDIA \w+", programs)
    stamp = stamps[0].replace(
        "two-core CPU machine", "two-core CPU machine; steps on " + (gpu.group() if gpu else "a GPU")
    )
    (RESULTS / "methods.md").write_text(
        page(methods(recall, programs), stamp, gpu.group() if gpu else "a GPU")
    )


if __name__ == "__main__":
    main()
