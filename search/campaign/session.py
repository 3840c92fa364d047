"""From options to a finished campaign: resolve names, open or resume the run, build the parts, drive."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from agents.base import Lesson, Proposer
from agents.ensemble import EnsembleProposer
from agents.prices import SpendLimit
from agents.prompting import version as prompts_version
from agents.registry import make_proposer
from evaluators.plan import EvaluationPlan, load_plan
from search.campaign.budget import nothing_left
from search.campaign.campaign import Campaign
from search.campaign.lessons import Lessons, carried
from search.campaign.options import Options, resolve
from search.campaign.reach import left_out, within_reach
from search.campaign.replay import ReplayProposer, read_recording
from search.commands.evaluation import SERVING
from search.config import CampaignConfig, Cluster, load_proposer
from search.errors import bad_log, other_configuration
from search.executors.placement import place, resources_here
from search.executors.preflight import require
from search.executors.ray_cluster import RayExecutor
from search.executors.workers import EngineSetup
from search.log import events as ev
from search.log.run import campaign_of, open_run, read_state, recorded_seed
from search.log.state import CampaignState
from search.machine import machine, versions
from search.pace import Pace, pace, share_of_items
from vortex_core.ir.flow import Flow
from vortex_core.specs import ModelSpec


def plan_of(config: CampaignConfig) -> EvaluationPlan:
    """The campaign's evaluation plan, for the target that its objective declares.

    Raises:
        VortexError: `VV001` or `VV008` for a plan that does not exist or validate.
    """
    plan, target = load_plan(config.evaluation), config.objective.target
    if target is None or target == plan.target:
        return plan
    return EvaluationPlan.model_validate(plan.model_dump(mode="json") | {"target": target})


def serving_section(config: CampaignConfig, model: ModelSpec) -> dict[str, Any] | None:
    """The section of the plan that the stage `serving` reads, None where the campaign serves nothing."""
    from search.commands.serve import model_source

    if config.serving is None:
        return None
    asked = config.serving.model_dump(exclude={"finalists", "deadline"})
    return asked | {"model": model_source(config.model), "vocabulary": model.vocab}


def run_campaign(
    options: Options,
    watching: Callable[[CampaignConfig, str], Any],
    executor: Any = None,
    said: Callable[[str], None] = lambda words: None,
) -> tuple[str, CampaignState]:
    """Run or resume a campaign to its end.

    Args:
        watching: `(config, run name) -> context manager with a watch method`, for progress.
        executor: runs stages; by default a Ray cluster as configured.
        said: called where a finished run has nothing left to do, and where a slow machine is asked less.

    Returns:
        The run's name and its final state.

    Raises:
        VortexError: whatever is wrong, before anything was spent where that can be known.
        KeyboardInterrupt: after a clean pause.
    """
    from search.executors.describe import describe
    from vortex_core.serving.launch import check_environment, interpreter

    resolved = resolve(options)
    config, name = resolved.config, resolved.run_name(options)
    plan = plan_of(config)
    specs = {arm.name: arm.proposer or config.proposer for arm in config.arms}
    recording = None if options.replay is None else read_recording(options.replay)
    seed = options.seed if recording is None else recorded_seed(recording.started)
    for spec in specs.values():
        load_proposer(spec)
    model = describe(config.model, config.cluster.address)
    setup = EngineSetup(
        config.model,
        plan.model_dump(mode="json"),
        ranks=config.cluster.tensor_parallel,
        accuracy_model=config.accuracy_model,
        random_weights=config.random_weights,
        serving=serving_section(config, model),
    )
    if config.cluster.address is None and executor is None:
        # On one machine what is missing is known at once; on a cluster, where the engines are to run.
        place(config.cluster, resources_here())
        require(setup, memory=False)
        if config.serving is not None:
            check_environment(interpreter(config.serving.python))
    with open_run(name, readonly=False) as run:
        state = read_state(run)
        began = state.started or (recording.started if recording is not None else None)
        found = _pace(config, executor) if began is None else None
        share = _share_of_items(config, began, found)
        if words := left_out(config, plan, share):
            said(words)
        plan, config = plan.with_items(share), within_reach(config, share)
        setup = replace(setup, plan=plan.model_dump(mode="json"))
        settings = _settings(config, seed, specs) | {"items_share": share}
        _require_same(name, state, settings, plan.digest)
        done = nothing_left(config.limits, state)
        if done is not None and state.limits.get("serving") == config.model_dump(mode="json")["serving"]:
            said(f"finished: {done}; nothing is left to do, and nothing was started")
            return name, state
        config = _with_threads(config, found or _pace(config, executor))
        if recording is None:
            proposers = make_proposers(specs, config, state)
        else:
            replayed: Proposer = ReplayProposer(recording)
            proposers = dict.fromkeys(specs, replayed)
        started = ev.CampaignStarted(
            name, settings, plan.model_dump(mode="json") | {"digest": plan.digest}, versions(), machine()
        )
        limits = config.model_dump(include={"limits", "cluster", "serving"})
        prices = {name: price for proposer in proposers.values() for name, price in proposer.prices().items()}
        session = ev.SessionStarted(
            os.getpid(), limits, versions(), machine(), specs, prices, prompts_version()
        )
        with watching(config, name) as progress:
            campaign = Campaign(
                run,
                config,
                executor or _ray(config, setup, plan, share, name, run.folder.absolute() / "logs"),
                proposers,
                seed=seed,
                model=model.model_dump(mode="json"),
                library=load_library,
                watch=progress.watch,
                say=progress.say,
                recording=recording,
                carried=tuple(lesson for source in options.lessons for lesson in lessons_of(source)),
            )
            try:
                asyncio.run(campaign.run_to_end(started, session))
            except asyncio.CancelledError:  # SIGTERM; Ctrl-C arrives as KeyboardInterrupt by itself
                raise KeyboardInterrupt from None
        return name, campaign.state


def lessons_of(run: str) -> tuple[Lesson, ...]:
    """The lessons of another run, to be carried into this one.

    Raises:
        VortexError: `VS001` for a run that does not exist.
    """
    with open_run(run, readonly=True) as opened:
        state = read_state(opened)
        return carried(Lessons(opened.files, campaign_of(state)).now(state), run)


def _pace(config: CampaignConfig, executor: Any) -> Pace | None:
    """How fast this machine computes as a session begins; None where nothing depends on it: neither how many items are
    asked nor the threads of an engine that is started here."""
    here = config.cluster.address is None and (config.cluster.device == "cpu" or not resources_here().gpus)
    return pace() if here and (executor is None or config.written_for is not None) else None


def _share_of_items(config: CampaignConfig, began: ev.CampaignStarted | None, found: Pace | None) -> float:
    """The share of the plan's items that is asked: as the run or the recording began, else as this machine is now."""
    if began is not None:
        return float(began.settings.get("items_share", 1.0))
    if found is None or config.limits.seconds is None or config.written_for is None:
        return 1.0
    return share_of_items(config.limits.seconds / config.written_for * found.rate)


def _with_threads(config: CampaignConfig, found: Pace | None) -> CampaignConfig:
    """On cores that others use, engines of no more threads than they get cores, unless the campaign says how many."""
    cluster, cores = config.cluster, resources_here().cores
    if found is None or cluster.threads is not None or found.cores(cores) == cores:
        return config
    threads = max(1, found.cores(cores) // ((cluster.engines or 1) * cluster.tensor_parallel))
    return config.model_copy(update={"cluster": cluster.model_copy(update={"threads": threads})})


def _ray(
    config: CampaignConfig, setup: EngineSetup, plan: EvaluationPlan, share: float, name: str, logs: Path
) -> RayExecutor:
    """The cluster that a campaign asks for."""
    from search.commands.evaluation import stage_table

    second = None
    if config.finals.second is not None:
        asked = load_plan(config.finals.second.evaluation).with_items(share)
        second = EngineSetup(config.finals.second.model, asked.model_dump(mode="json"))
    return RayExecutor(
        _with_serving(config),
        setup,
        partial(stage_table, plan),
        campaign=name,
        logs=str(logs),
        screen=config.screen,
        second=second,
    )


def _with_serving(config: CampaignConfig) -> Cluster:
    """The cluster, with the deadline of the stage `serving` where the campaign has one."""
    if config.serving is None:
        return config.cluster
    deadlines = {SERVING: config.serving.deadline} | config.cluster.deadlines
    return config.cluster.model_copy(update={"deadlines": deadlines})


def make_proposers(
    specs: Mapping[str, str], config: CampaignConfig, state: CampaignState
) -> dict[str, Proposer]:
    """A proposer for each arm; equal specifications share one, and all share the spending limit.

    Raises:
        VortexError: `VA...`, e.g. a missing key, before anything is run.
    """
    limits = config.limits
    limit = SpendLimit(
        limits.dollars,
        limits.tokens,
        limits.calls,
        spent_dollars=state.dollars,
        spent_tokens=state.tokens,
        spent_calls=state.calls,
    )
    made: dict[str, Proposer] = {}
    for spec in sorted(set(specs.values())):
        found = load_proposer(spec)
        proposer = make_proposer(found.spec, language=_language, limit=limit, **found.options)
        # A single model is a choice, too: of how to change a parent.
        alone = proposer.changes and not isinstance(proposer, EnsembleProposer)
        made[spec] = EnsembleProposer([proposer]) if alone else proposer
    return {arm: made[spec] for arm, spec in specs.items()}


def load_library(flow: str, knobs: dict[str, Any]) -> tuple[Flow, str]:
    """A library flow, or one's own by the path of its file, with some of its knobs changed, and source that traces back
    to exactly that.

    Raises:
        VortexError: `VF070` for an unknown name, else whatever is wrong with the file.
    """
    from vortex_core import library
    from vortex_core.flow.emit import emit

    traced = library.resolve(flow)
    if not knobs:
        return traced.flow, traced.source
    changed = traced.flow.with_knobs(**{k: tuple(v) if isinstance(v, list) else v for k, v in knobs.items()})
    name = Path(flow).stem
    named = replace(changed, name=f"{name} {_knob_words(traced, changed)}".strip())
    return named, emit(changed.program, changed.knobs, name, changed.doc)


def _knob_words(traced: Flow, changed: Flow) -> str:
    before, after = traced.knobs.to_json(), changed.knobs.to_json()
    return ",".join(f"{k}={after[k]}" for k in after if after[k] != before[k])


def _language() -> str:
    from search.campaign.conditions import language

    return language()


def _settings(config: CampaignConfig, seed: int, specs: Mapping[str, str]) -> dict[str, Any]:
    """What decides the meaning of results. Limits, cluster, serving and proposers may differ between sessions."""
    campaign = config.model_dump(mode="json", exclude={"limits", "cluster", "serving", "description"})
    return {"campaign": campaign, "model": config.model, "seed": seed, "proposers": dict(specs)}


_FREE = (
    "proposer",
    "proposer_patience",
    "repairs",
)  # of a campaign: who writes decides nothing about results


def _comparable(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with what nobody gave at its default: a run begun before a setting was there goes on after."""
    with suppress(ValidationError):
        settings = settings | {
            "campaign": CampaignConfig.model_validate(settings["campaign"]).model_dump(mode="json")
        }
    campaign = {name: value for name, value in settings["campaign"].items() if name not in _FREE}
    arms = [{k: v for k, v in arm.items() if k != "proposer"} for arm in campaign.get("arms", ())]
    return {"campaign": {**campaign, "arms": arms}, "model": settings["model"], "seed": settings["seed"]}


def _require_same(name: str, state: CampaignState, settings: dict[str, Any], digest: str) -> None:
    if state.untouched or state.started is None:
        return
    try:
        before = _comparable(state.started.settings)
    except (KeyError, TypeError, AttributeError) as error:
        raise bad_log(f"of {name}", "its first event says no campaign, model and seed") from error
    differences = list(_differences(before, _comparable(settings)))
    if state.started.plan.get("digest") != digest:
        differences.append("the evaluation plan has changed")
    if differences:
        raise other_configuration(name, differences)


def _differences(before: Any, after: Any, path: str = "") -> Iterator[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted(before.keys() | after.keys()):
            yield from _differences(before.get(key), after.get(key), f"{path}.{key}" if path else key)
    elif before != after:
        yield f"{path} was {before!r}, is {after!r}"
