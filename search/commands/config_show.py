"""`vortex-search config show`: a campaign as it would run, and where every value of it comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluators.plan import read_plan
from search.campaign.options import Options, Resolved, resolve
from search.campaign.session import plan_of
from search.executors.placement import place, resources_here
from search.executors.preflight import require
from search.executors.workers import EngineSetup
from vortex_core.configs import Loaded
from vortex_core.errors import VortexError


@dataclass(frozen=True)
class Value:
    """One effective value: its dotted key, and the file or option that set it; `default` if none did."""

    key: str
    value: Any
    source: str


@dataclass(frozen=True)
class Shown:
    """A campaign to be printed.

    Attributes:
        campaign: name of the file.
        why: why this one was chosen, where the command line does not say.
        run: the run's name.
        values: of the campaign, then of its evaluation plan (keys under `plan.`).
        here: what this machine would run, in words; empty for a cluster, which is not asked.
        missing: what keeps it from running here, as errors.
    """

    campaign: str
    why: str
    run: str
    values: tuple[Value, ...]
    here: str
    missing: tuple[VortexError, ...]


def show(options: Options) -> Shown:
    """Resolve a campaign; nothing is loaded, fetched or started.

    Raises:
        VortexError: for files and names that do not exist or validate.
    """
    resolved = resolve(options)
    config = resolved.config
    values = [*_values(resolved.loaded, config.model_dump(mode="json"), "")]
    plan, target = read_plan(config.evaluation), config.objective.target
    for value in _values(plan, plan.value.model_dump(mode="json"), "plan."):
        if value.key == "plan.target" and target is not None:
            value = Value(value.key, target, "objective.target")
        values.append(value)
    here, missing = _here(resolved)
    return Shown(resolved.campaign, resolved.why, resolved.run_name(options), tuple(values), here, missing)


def _values(loaded: Loaded[Any], data: Mapping[str, Any], prefix: str) -> Iterator[Value]:
    for key, value in flatten(data):
        yield Value(prefix + key, value, short(loaded.source_of(key)))


def flatten(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys; a list is one value, and so is an empty mapping."""
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def short(source: str) -> str:
    """A file by its folder and name where it is one that ships."""
    path = Path(source)
    return "/".join(path.parts[-2:]) if path.suffix and path.parent.parent.name == "configs" else source


def _here(resolved: Resolved) -> tuple[str, tuple[VortexError, ...]]:
    config = resolved.config
    if config.cluster.address is not None:
        return "", ()
    missing: list[VortexError] = []
    words = ""
    try:
        words = place(config.cluster, resources_here()).words()
    except VortexError as error:
        missing.append(error)
    setup = EngineSetup(
        config.model,
        plan_of(config).model_dump(mode="json"),
        ranks=config.cluster.tensor_parallel,
        accuracy_model=config.accuracy_model,
        random_weights=config.random_weights,
    )
    try:
        require(setup, memory=False, fetch=False)
    except VortexError as error:
        missing.append(error)
    return words, tuple(missing)
