"""What a result was measured on: versions and hardware, recorded with every run and export."""

from __future__ import annotations

import os
import platform
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

DISTRIBUTIONS = ("torch", "triton", "transformers", "ray", "numpy", "moocore")


def versions() -> dict[str, str]:
    """Versions of this project, of Python and of the libraries that results depend on."""
    import vortex_core

    found = {"vortex-search": vortex_core.__version__, "python": platform.python_version()}
    for name in DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "missing"
    commit = _commit()
    if commit:
        found["commit"] = commit
    return found


def machine() -> dict[str, Any]:
    """Processor, cores, memory and GPUs of this machine."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": gpus,
    }


def device_facts(device: str, *, ranks: int = 1) -> dict[str, Any]:
    """What an engine of this process runs on: kind, name, memory, driver; called where the engine is."""
    import torch

    if device != "cuda":
        return {"kind": "cpu", "name": _processor(), "host": platform.node(), "ranks": ranks}
    found = torch.cuda.get_device_properties(0)
    return {
        "kind": "cuda",
        "name": found.name,
        "memory_bytes": found.total_memory,
        "capability": f"{found.major}.{found.minor}",
        "cuda": torch.version.cuda,
        "host": platform.node(),
        "gpu": os.environ.get("CUDA_VISIBLE_DEVICES", "0"),
        "ranks": ranks,
    }


def device_words(devices: Iterable[Mapping[str, Any]]) -> str:
    """Devices for people, e.g. `2 x NVIDIA H100 80GB HBM3`; the CPU's name where that is what they are."""
    counts = Counter((str(d["name"]), d.get("ranks", 1) if d["kind"] == "cuda" else 1) for d in devices)
    return ", ".join(
        f"{n * ranks} x {name}" if n * ranks > 1 else name for (name, ranks), n in counts.items()
    )


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of a source checkout, with `+` if it was changed; None for an installed distribution."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()
