"""From IR to kernels ready to launch: how long, with empty caches and with full ones.

    python -m benchmarks.compile_latency [--flows quest block_topk] [--out benchmarks/results]

Each flow is compiled in two fresh processes that share one cache folder, empty at first. Imports and the device's
context are made before the clock starts. With a GPU the clock stops when the first step's result is there (kernels
loaded and launched once); without one it stops when the machine code for sm_90a exists, and the table says so.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE, BUDGET, LENGTH = 16, 2048, 4096


def child(name: str) -> dict[str, Any]:
    """Compile one flow in this process; seconds by phase."""
    import torch

    from vortex_core import library
    from vortex_core.compiler.triton.generate import generate
    from vortex_core.compiler.triton.offline import build_flow
    from vortex_core.geometry import Geometry
    from vortex_core.ir.program import Program

    traced = library.load(name).with_knobs(page_size=PAGE, budget=str(BUDGET))
    text = traced.program.to_json()
    geometry = Geometry(28, 8, 4, 128, 128, 128)
    if torch.cuda.is_available():
        torch.ones(1, device="cuda").sum().item()  # the device's context is not what is timed
    started = time.perf_counter()
    program = Program.from_json(text).canonical()
    read = time.perf_counter()
    generate(program, geometry, PAGE)
    generated = time.perf_counter()
    if torch.cuda.is_available():
        first_step(program, traced.knobs, geometry)
    else:
        build_flow(program, traced.knobs, geometry)
    ended = time.perf_counter()
    return {"ir": read - started, "text": generated - read, "machine code": ended - generated}


def first_step(program: Any, knobs: Any, geometry: Any) -> None:
    """Compile, update one page's state and select once, on the GPU."""
    import torch

    from vortex_core.compiler import backends
    from vortex_core.compiler.interface import BatchView, LayerKV

    flow = backends.get("triton").compile(program, knobs, geometry)
    device, pages = torch.device("cuda"), LENGTH // PAGE
    k = torch.zeros(geometry.kv_heads, pages, PAGE, geometry.head_dim, device=device, dtype=torch.bfloat16)
    states = flow.new_states(pages, device)
    table = torch.arange(pages, device=device, dtype=torch.int32)
    flow.update(states, LayerKV(k, k), table, 0)
    ints = {"device": device, "dtype": torch.int32}
    view = BatchView(
        table[None], torch.tensor([LENGTH], **ints), torch.tensor([knobs.pages(LENGTH)], **ints), LENGTH
    )
    q = torch.zeros(1, geometry.kv_heads * geometry.group, geometry.head_dim, device=device, dtype=k.dtype)
    flow.select(q, states, view, 0)
    torch.cuda.synchronize()


def measure(name: str) -> dict[str, dict[str, float]]:
    """Phases by state of the cache."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "VORTEX_CACHE": folder, "TRITON_CACHE_DIR": str(Path(folder) / "triton")}
        for state in ("cold", "cached"):
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.compile_latency", "--child", name],
                env=env, capture_output=True, text=True, cwd=HERE.parent, check=False,
            )  # fmt: skip
            if done.returncode:
                raise SystemExit(f"{name} does not compile:\n{done.stderr[-2000:]}")
            found[state] = json.loads(done.stdout.splitlines()[-1])
    return found


def to_markdown(report: dict[str, Any]) -> str:
    """The report as a page."""
    m = report["machine"]
    lines = [
        "# From IR to kernels",
        "",
        (
            f"`python -m benchmarks.compile_latency --flows {' '.join(report['flows'])}`, {m['date']}. "
            f"{m['device']}, Python {m['python']}, torch "
            f"{m['torch']}, triton {m['triton']}. Page {PAGE}, 32 query and 8 kv heads of 128; times end with "
            f"{m['ends']}. Milliseconds, one process each."
        ),
        "",
        "| flow | cold | cached | of it: IR read | text generated | kernels, cold | kernels, cached |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, found in report["flows"].items():
        cold, warm = found["cold"], found["cached"]
        cells = [
            sum(cold.values()), sum(warm.values()), cold["ir"], cold["text"], cold["machine code"],
            warm["machine code"],
        ]  # fmt: skip
        lines.append(f"| {name} | " + " | ".join(f"{1e3 * x:.0f}" for x in cells) + " |")
    return "\n".join(lines) + "\n"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    from vortex_core import library

    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [n for n in library.names() if n != "dense"]
    found.add_argument("--flows", nargs="+", default=names, choices=names, metavar="FLOW")
    found.add_argument("--json", action="store_true", help="print the report as JSON")
    found.add_argument(
        "--out", type=Path, default=HERE / "results", help="folder for compile_latency.{json,md}"
    )
    found.add_argument("--child", help=argparse.SUPPRESS)
    return found


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    args = parser().parse_args(argv)
    if args.child:
        print(json.dumps(child(args.child)))
        return 0
    import torch
    import triton

    gpu = torch.cuda.is_available()
    flows = {}
    for name in args.flows:
        flows[name] = measure(name)
        cold, warm = (sum(flows[name][s].values()) for s in ("cold", "cached"))
        print(f"{name}: cold {cold:.2f} s, cached {warm:.3f} s", file=sys.stderr, flush=True)
    report = {
        "machine": {
            "device": torch.cuda.get_device_name() if gpu else f"no GPU, {os.cpu_count()} cores",
            "ends": "the first step's result on the GPU" if gpu else "machine code for sm_90a (nothing loaded)",
            "python": platform.python_version(), "torch": torch.__version__, "triton": triton.__version__,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        },
        "flows": flows,
    }  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "compile_latency.json").write_text(json.dumps(report, indent=1) + "\n")
    (args.out / "compile_latency.md").write_text(to_markdown(report))
    print(json.dumps(report, indent=1) if args.json else to_markdown(report))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
