"""The cache of tuning results: one JSON file a key under `$VORTEX_CACHE/tuning`.

Compiling reads it and never writes it; `tune.py` measures and writes. A result holds for exactly the program, code
generator, kernels, machine and shape bucket it was measured for: anything else is a miss, and `TuningCache.miss` says why.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import triton

from vortex_core import kernels
from vortex_core.compiler.triton.cache import cache_root
from vortex_core.compiler.triton.generate import VERSION
from vortex_core.compiler.triton.launch_config import Configs, FlowConfig, default_configs
from vortex_core.geometry import Geometry
from vortex_core.ir.knobs import Knobs
from vortex_core.ir.program import Program
from vortex_core.kernels.runtime import INTERPRETED, next_power_of_2

_DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Machine:
    """What a measured time depends on besides the program and the shape."""

    gpu: str
    driver: str
    torch: str
    triton: str


@lru_cache(maxsize=1)
def this_machine() -> Machine | None:
    """The current GPU and the versions over it; None where nothing can be measured."""
    if INTERPRETED or not torch.cuda.is_available():
        return None
    return Machine(torch.cuda.get_device_name(), _driver(), torch.__version__, triton.__version__)


def _driver() -> str:
    """The driver's version where the kernel module tells it, else the newest CUDA it supports."""
    try:
        words = _DRIVER.read_text(encoding="utf-8").partition("\n")[0].split()
    except OSError:
        words = []
    numbers = [word for word in words if word.replace(".", "").isdigit() and "." in word]
    if numbers:
        return numbers[0]
    return f"CUDA {torch._C._cuda_getDriverVersion()}"  # type: ignore[attr-defined]


@lru_cache(maxsize=1)
def kernels_digest() -> str:
    """12 hex digits of the attention and selection kernels' sources: what fitted one version need not fit the next."""
    found = hashlib.sha256()
    for path in sorted(Path(kernels.__path__[0]).rglob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()[:12]


@dataclass(frozen=True)
class Key:
    """Everything that a tuning result depends on; it holds where all of it is the same.

    Attributes:
        generator, kernels: versions of the generated code and of the kernels beside it.
        machine: None where there is no GPU: such a key is never found.
        dtype: of K and V; queries are bf16.
        batch, pages, chosen: sequences, pages of the table and pages a list, each rounded up to a power of two.
    """

    ir_hash: str
    generator: int
    kernels: str
    machine: Machine | None
    kv_heads: int
    group: int
    head_dim: int
    rope_dim: int
    value_dim: int
    page_size: int
    dtype: str
    batch: int = 0
    pages: int = 0
    chosen: int = 0

    @classmethod
    def of(cls, program: Program, knobs: Knobs, geometry: Geometry, machine: Machine | None) -> Key:
        """The part that is known when a flow is compiled; `at` adds the shape bucket."""
        g = geometry
        dtype = "bf16" if knobs.kv_dtype == "auto" else knobs.kv_dtype
        shape = (g.kv_heads, g.group, g.head_dim, g.rope_dim, g.value_dim, knobs.page_size, dtype)
        return cls(program.canonical().ir_hash, VERSION, kernels_digest(), machine, *shape)

    def at(self, knobs: Knobs, layers: int, batch: int, pages: int) -> Key:
        """The key of a batch whose table has `pages` columns."""
        chosen = knobs.pages(pages * self.page_size, 0, layers)
        batch, pages, chosen = (next_power_of_2(n) for n in (batch, pages, chosen))
        return replace(self, batch=batch, pages=pages, chosen=chosen)

    def parts(self) -> dict[str, Any]:
        """Every part of the key by name, in one flat mapping."""
        found = asdict(self)
        machine = found.pop("machine") or {f.name: "none" for f in fields(Machine)}
        return {**found, **machine}


@dataclass(frozen=True)
class Tuned:
    """A tuning result as it is stored.

    Attributes:
        config: what to run.
        when: ISO date.
        gain: default over tuned time of a whole step, 1.0 where the defaults were kept.
        step_us: microseconds of the step with `config`.
    """

    config: FlowConfig
    when: str
    gain: float
    step_us: float


class TuningCache:
    """Results by key. Reading never raises: what cannot be used is a miss with a reason."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root if root is not None else cache_root() / "tuning"

    def folder(self, key: Key) -> Path:
        """Where all shapes of a compiled flow lie."""
        known = replace(key, batch=0, pages=0, chosen=0).parts()
        return self.root / hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:24]

    def path(self, key: Key) -> Path:
        """The file that holds the result of a key."""
        return self.folder(key) / f"b{key.batch}-p{key.pages}-c{key.chosen}.json"

    def read(self, key: Key) -> Tuned | str:
        """The result, or why there is none."""
        path = self.path(key)
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["key"] != key.parts():
                return f"{path} belongs to another key"
            return Tuned(
                FlowConfig.from_json(data["config"]),
                str(data["when"]), float(data["gain"]), float(data["step_us"]),
            )  # fmt: skip
        except FileNotFoundError:
            return "there is none"
        except (OSError, ValueError, KeyError, TypeError) as error:
            return f"{path} cannot be read ({type(error).__name__}: {error})"

    def write(self, key: Key, tuned: Tuned, trials: list[dict[str, Any]]) -> Path:
        """Store a result, whole or not at all; `trials` are kept for people to read."""
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        document = {"key": key.parts(), **asdict(tuned), "trials": trials}
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        with os.fdopen(handle, "w", encoding="utf-8") as f:
            json.dump(document, f, indent=1)
        Path(temporary).replace(path)
        return path

    def miss(self, key: Key) -> str:
        """Say in words what a result was looked for with, and in what the nearest stored one differs."""
        parts = key.parts()
        machine = (
            "no GPU here"
            if key.machine is None
            else f"{key.machine.gpu}, driver {key.machine.driver}, torch {key.machine.torch}, "
            f"triton {key.machine.triton}"
        )
        words = (
            f"IR {key.ir_hash[:12]}, code generator {key.generator}, kernels {key.kernels}, {machine}, batch {key.batch}, {key.pages:,} pages "
            f"of {key.page_size}, {key.chosen:,} chosen, {key.kv_heads} kv heads x {key.group}, "
            f"{key.head_dim} channels, {key.dtype}"
        )
        nearest: dict[str, Any] | None = None
        for path in self.root.glob("*/*.json"):
            try:
                other = json.loads(path.read_text(encoding="utf-8"))["key"]
                if other["ir_hash"] != parts["ir_hash"]:
                    continue
            except (OSError, ValueError, KeyError, TypeError):
                continue
            differing = {n: other.get(n) for n in parts if other.get(n) != parts[n]}
            if differing and (nearest is None or len(differing) < len(nearest)):
                nearest = differing
        if nearest is None:
            return words
        return (
            words
            + " (the nearest one has "
            + ", ".join(f"{n.replace('_', ' ')} {v}" for n, v in nearest.items())
            + ")"
        )


class _Stored:
    """Configurations of one compiled flow, each read when its shape first occurs."""

    def __init__(self, cache: TuningCache, key: Key, knobs: Knobs, layers: int) -> None:
        self._cache, self._key, self._knobs, self._layers = cache, key, knobs, layers
        self._found: dict[tuple[int, int], FlowConfig] = {}

    def __call__(self, batch: int, pages: int) -> FlowConfig:
        shape = (batch, pages)
        if shape not in self._found:
            tuned = self._cache.read(self._key.at(self._knobs, self._layers, batch, pages))
            self._found[shape] = tuned.config if isinstance(tuned, Tuned) else FlowConfig()
        return self._found[shape]


def stored_configs(program: Program, knobs: Knobs, geometry: Geometry) -> Configs:
    """What is stored for a flow on this machine; where nothing is, that costs one look for a folder."""
    machine = this_machine()
    if machine is None:
        return default_configs
    cache, key = TuningCache(), Key.of(program, knobs, geometry, machine)
    return _Stored(cache, key, knobs, geometry.layers) if cache.folder(key).is_dir() else default_configs


def describe(
    program: Program, knobs: Knobs, geometry: Geometry, *, batch: int, length: int, command: str
) -> dict[str, Any]:
    """What a step of `batch` sequences of `length` tokens runs with here: `{"tuned": bool, "words": one line}`.

    Args:
        command: what would tune it.
    """
    cache = TuningCache()
    pages = max(1, -(-length // knobs.page_size))
    key = Key.of(program, knobs, geometry, this_machine()).at(knobs, geometry.layers, batch, pages)
    found = cache.read(key)
    if isinstance(found, Tuned):
        assert key.machine is not None
        outcome = (
            "the defaults are best"
            if found.config == FlowConfig()
            else f"a step is {found.gain - 1:.1%} faster than with the defaults"
        )
        return {"tuned": True, "words": f"tuned {found.when} on {key.machine.gpu}: {outcome}"}
    unreadable = "" if found == "there is none" else f" ({found})"
    where = "run" if key.machine is not None else "on a machine with one run"
    words = f"defaults: no tuning result{unreadable} for {cache.miss(key)}; {where}: {command}"
    return {"tuned": False, "words": words}
