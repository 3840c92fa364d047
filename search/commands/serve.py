"""`vortex-search serve`: from a run's candidate, or any flow, to a running SGLang server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from search.errors import UNKNOWN_NAME
from search.log.run import campaign_of, open_run, read_state, run_names, runs_root
from vortex_core import library
from vortex_core.codes import UNKNOWN_FLOW
from vortex_core.errors import VortexError
from vortex_core.files import parse_json
from vortex_core.ir.flow import Flow
from vortex_core.ir.knobs import Knobs
from vortex_core.serving.bundle import load_flow, write_flow
from vortex_core.serving.launch import Launch, launch_command
from vortex_core.serving.settings import Settings

F = TypeVar("F", bound=Flow)


def model_source(model: str) -> str:
    """What SGLang can load: the directory of weights that are here, else the hub id, of a described model;
    anything else as it is."""
    from vortex_core.specs import list_models, load_model

    if model.lower() not in list_models():
        return model
    from vortex_core.engine.models.status import model_status

    directory = model_status(model).directory
    return str(directory) if directory is not None else load_model(model).hf_id


def bundle_of_run(name: str, rank: int, *, winner: bool = False) -> tuple[Flow, str]:
    """The found program of a rank, or the winner, and the model it was found on.

    Raises:
        VortexError: `VS001` for an unknown run, `VS007` for a rank that it does not have, `VS044` without a winner.
    """
    from search.campaign.archive import Archive
    from search.commands.export import choose
    from search.errors import unknown_run

    with open_run(name, readonly=True) as run:
        state = read_state(run)
        if state.started is None:
            raise unknown_run(name, [n for n in run_names() if n != name])
        config = campaign_of(state)
        candidate = choose(Archive(state, config.objective), name, rank, winner=winner).candidate
        return candidate.flow(run.files), config.model


def find_flow(target: str, rank: int, *, winner: bool = False) -> tuple[Flow, str | None]:
    """What `serve TARGET` means: a run, an exported directory or bundle, a `.py` file, or a library flow.

    Returns:
        The flow, and the model it was found on where that is known.
    """
    if target in run_names():
        return bundle_of_run(target, rank, winner=winner)
    path = Path(target)
    if path.is_dir() or path.suffix == ".json":
        return load_flow(target), None
    try:
        return library.resolve(target).flow, None
    except VortexError as error:
        if error.code != UNKNOWN_FLOW.code:
            raise
        near = f"{error.remedy} Runs: {', '.join(run_names()) or 'none yet'}."
        raise VortexError(UNKNOWN_NAME.code, f"neither a run nor a flow: {target!r}", near) from error


def with_knobs(bundle: F, changes: Sequence[str]) -> F:
    """The flow with some knobs changed, each as `name=value`: another candidate, under a key of its own.

    Raises:
        VortexError: `VS010` for what is no such pair, `VF061` for an unknown knob or a value outside its range.
    """
    from search.errors import bad_value

    knobs = bundle.knobs.to_json()
    for change in changes:
        name, equals, text = change.partition("=")
        if not equals:
            raise bad_value("--set", change, "knob=value")
        try:
            knobs[name] = parse_json(text)
        except ValueError:  # an expression, such as a budget
            knobs[name] = text
    return replace(bundle, knobs=Knobs.from_json(knobs))


def plan_launch(
    target: str,
    *,
    rank: int = 1,
    winner: bool = False,
    changes: Sequence[str] = (),
    model: str | None = None,
    settings: Settings | None = None,
    options: Sequence[str] = (),
    python: str | None = None,
) -> Launch:
    """Write the flow's bundle and make the command that serves it.

    Args:
        changes: knobs to change, each as `name=value`.
        settings: everything but `flow`, which is the bundle written here.

    Raises:
        VortexError: `VS010` where no model is known, else as `find_flow` and `launch_command`.
    """
    from search.errors import bad_value

    bundle, found_on = find_flow(target, rank, winner=winner)
    bundle = with_knobs(bundle, changes)
    chosen = model or found_on
    if chosen is None:
        raise bad_value("--model", "none", "the model to serve, by name, directory or hub id")
    folder = runs_root() / ".serving"
    folder.mkdir(parents=True, exist_ok=True)
    path = write_flow(bundle, folder / f"{bundle.key}.json").resolve()
    chosen_settings = replace(settings or Settings(""), flow=str(path))
    return launch_command(bundle, chosen_settings, model_source(chosen), options, python)
