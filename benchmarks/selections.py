"""Checks against the definition, then times one selection launch of each kind, on the GPU at hand.

    python -m benchmarks.selections [--shapes 128x2048,128x1026/2064,16x65536] [--out benchmarks/results]

Rows x pages of fp32 scores, in tables with room for as many or for more (`/2064`: serving engines capture a step with
room for the longest sequence). 128 pages beside the first and the last two. A union takes a launch a stream. Times are
medians of CUDA graph replays over one input, which the L2 may hold, as it does after a scoring launch.
"""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import triton
from torch.nn.functional import pad

from benchmarks import needs
from tests.interp.kernels import inputs
from vortex_core.compiler.triton.tuning.timing import graph_time
from vortex_core.kernels import Limit, Marks, select_pages, select_workspace
from vortex_core.kernels.reference import select_reference
from vortex_core.kernels.select.api import Stage

PAGE, BUDGET, FIRST, LAST = 16, 128, 1, 2
KINDS: tuple[tuple[str, Limit | None, tuple[Stage, ...]], ...] = (
    ("top-k", None, ()),
    ("threshold 3.5", Limit("threshold", 3.5), ()),
    ("top-p 0.5", Limit("top-p", 0.5), ()),
    ("top-p 0.95", Limit("top-p", 0.95), ()),
    ("union of 2 top-k", None, ("begin", "list")),
    ("union of 3 top-k", None, ("begin", "add", "list")),
    ("union of 2 top-p 0.3", Limit("top-p", 0.3), ("begin", "list")),
)


def measure(
    rows: int,
    pages: int,
    width: int,
    name: str,
    limit: Limit | None,
    stages: tuple[Stage, ...],
    *,
    sifts: bool,
) -> dict[str, Any]:
    """One kind at one shape: rows of `pages` in tables of `width`. Raises AssertionError where the pages are not the
    definition's."""
    device = torch.device("cuda")
    tokens = pages * PAGE - 5
    cases = [
        inputs.scores([tokens] * rows, heads=1, page_size=PAGE, seed=n, device="cuda")
        for n in range(max(1, len(stages)))
    ]
    room = (0, width - pages)
    cases = [
        inputs.Scores(pad(case.scores * 2.0, room), case.n_tokens, pad(case.table, room)) for case in cases
    ]
    table = cases[0].table
    budget = torch.tensor([BUDGET], dtype=torch.int32, device=device)
    ids = torch.zeros(rows, BUDGET * len(cases), dtype=torch.int32, device=device)
    lens = torch.zeros(rows, dtype=torch.int32, device=device)
    space = select_workspace(rows, width, BUDGET, device, sifts=sifts)
    marks = torch.empty(rows, width, dtype=torch.uint8, device=device)

    def run() -> None:
        for n, case in enumerate(cases):
            select_pages(
                case.scores, case.n_tokens, budget, table, heads=1, page_size=PAGE, page_ids=ids, kv_lens=lens,
                keep_first=FIRST, keep_last=LAST, workspace=space, limit=limit,
                marks=Marks(marks, stages[n], BUDGET) if stages else None,
            )  # fmt: skip

    run()
    ends = {} if limit is None else {"top_p" if limit.kind == "top-p" else "threshold": limit.value}
    count = 0
    for row in (0, rows - 1):
        wanted: set[int] = set()
        for case in cases:
            found, _, _ = select_reference(
                case.scores[row : row + 1].cpu(), torch.tensor([tokens]), budget.cpu(), table[row : row + 1].cpu(),
                heads=1, page_size=PAGE, keep_first=FIRST, keep_last=LAST, **ends,
            )  # fmt: skip
            wanted |= set(found[0])
        count = -(-int(lens[row]) // PAGE)
        got, want = ids[row, :count].tolist(), [int(table[row, page]) for page in sorted(wanted)]
        # Masses are summed in another order: the page at which a top-p ends may differ, one a stream.
        near = limit is not None and limit.kind == "top-p" and len({*got} ^ {*want}) <= len(cases)
        assert got == want or near, f"{name}, row {row}: {len(got)} pages, {len(want)} wanted"
    return {
        "rows": rows, "pages": pages, "room": width, "kind": name + ", sifted" * sifts, "chosen": count,
        "launches": len(cases),
        "us": graph_time([run]),
    }  # fmt: skip


def shape_of(text: str) -> tuple[int, int, int]:
    """Rows, pages of each, and pages that there is room for, of `ROWSxPAGES[/ROOM]`."""
    rows, _, row = text.partition("x")
    pages, _, room = row.partition("/")
    found = int(rows), int(pages), int(room or pages)
    if min(found) < 1 or found[2] < found[1]:
        raise ValueError(f"{text} has no rows, no pages, or no room for them")
    return found


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shapes = "128x2048,128x1026/2064,128x257/2064,128x8192,16x65536"
    found.add_argument("--shapes", default=shapes, help="ROWSxPAGES[/ROOM],...")
    found.add_argument("--sift", action="store_true", help="also with blocks sifted before they are searched")
    found.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    return found


def page(document: dict[str, Any]) -> str:
    """The document as Markdown."""
    made = f"{document['gpu']}; torch {document['torch']}, triton {document['triton']}"
    lines = [
        "# Selections by kind",
        "",
        f"`python -m benchmarks.selections`, {document['date']}. {made}.",
        f"fp32 scores, a budget of {BUDGET} pages, {FIRST} + {LAST} kept besides; a union is a launch a stream.",
        "",
        "| rows | pages | room | kind | chosen | launches | us |",
        "|---:|---:|---:|---|---:|---:|---:|",
    ]
    for r in document["rows"]:
        shape = f"| {r['rows']} | {r['pages']:,} | {r['room']:,} "
        lines.append(f"{shape}| {r['kind']} | {r['chosen']} | {r['launches']} | {r['us']:.1f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    command_line = parser()
    args = command_line.parse_args()
    try:
        shapes = [shape_of(text) for text in args.shapes.split(",")]
    except ValueError as error:
        command_line.error(f"--shapes: {error}")
    needs.gpus(command_line)
    document: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "triton": triton.__version__,
        "date": f"{datetime.now(UTC):%Y-%m-%d}", "rows": [],
    }  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    for rows, pages, room in shapes:
        for kind in KINDS:
            for sifts in (False, True)[: 1 + (args.sift and room > 1024)]:
                document["rows"].append(measure(rows, pages, room, *kind, sifts=sifts))
            (args.out / "selections.json").write_text(json.dumps(document, indent=1) + "\n")
    (args.out / "selections.md").write_text(page(document))
    print(page(document))


if __name__ == "__main__":
    main()
