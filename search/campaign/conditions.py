"""How a campaign measures, in words for whoever writes programs: known before anything was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from evaluators.plan import EvaluationPlan
from search.config import CampaignConfig, Screen
from search.log.state import CampaignState, Candidate
from vortex_core.errors import VortexError, declared
from vortex_core.ir.knobs import Knobs
from vortex_core.specs import ModelSpec, load_gpu, load_model

_COMPARED = 6


def setting(
    state: CampaignState, config: CampaignConfig, arm: str | None = None, model: dict[str, Any] | None = None
) -> str:
    """Where answers and speed are asked, what a byte and a launch cost there, and what chance alone does: a line each.

    The plan says the first, dense attention's results, where there are some already, the last.

    Args:
        arm: whose candidates are told of, beside the library's; None is everybody's.
        model: description of the model served: one that reads less than the plan asks is asked at shorter contexts.
    """
    plan = {} if state.started is None else _asked(state.started.plan, config, model)
    dense = next((c for c in state.candidates.values() if c.is_dense), None)
    lines = [
        *_screen(config.screen, plan),
        *_answers(config, plan, dense),
        *_screened_and_answered(config, state, arm),
        *_choice(config, plan),
        *_speed(config, plan, dense),
    ]
    return "\n".join(f"- {line}" for line in lines)


def _asked(plan: dict[str, Any], config: CampaignConfig, model: dict[str, Any] | None) -> dict[str, Any]:
    """A run's plan as the answering model is asked it; as it stands where the model is not known by its shapes."""
    if not plan or model is None:
        return plan
    try:
        answers = (
            load_model(config.accuracy_model) if config.accuracy_model else ModelSpec.model_validate(model)
        )
        found = EvaluationPlan.model_validate({name: part for name, part in plan.items() if name != "digest"})
        return found.for_model(answers).model_dump(mode="json")
    except (ValidationError, VortexError):
        return plan


def language() -> str:
    """The language reference, with what evaluators refuse a program for behind it."""
    import evaluators.errors  # noqa: F401
    import search.errors  # noqa: F401 - importing a catalogue declares its codes
    from vortex_core.flow.reference import compact

    codes = [c for c in declared().values() if c.fault == "candidate" and c.home in ("evaluators", "search")]
    shown = "; ".join(f"{c.code} {c.title} (must hold: {c.rule})" for c in codes)
    return f"{compact()}\n\n## What stops a legal program\n{shown}.\n"


def _screen(screen: Screen | None, plan: Mapping[str, Any]) -> Iterator[str]:
    """What every program goes through, and who goes on."""
    if screen is None:
        yield "Every program that is legal answers."
        return
    asked = plan.get("screen") or {}
    prompts = asked.get("retrieval_items", 0) + asked.get("passages", 0)
    on = f" of {prompts} prompts, {asked.get('at')} steps each" if prompts else ""
    yield (
        f"First the screen, on recorded attention{on}: {screen.accuracy} in {screen.layers} layers, no answers. "
        f"The best of each {screen.full} programs goes on to {screen.full_layers} layers, the best of each "
        f"{screen.answers} of those answers: about one program in {screen.full * screen.answers}. "
        "Its answers then decide whether it keeps the gates."
    )


def _answers(config: CampaignConfig, plan: Mapping[str, Any], dense: Candidate | None) -> Iterator[str]:
    """What is asked, where, and how far chance moves it."""
    asked = (plan.get("accuracy") or {}).get("tasks", ())
    items = sum(task["items"] for task in asked)
    name = config.objective.accuracy
    if items:
        tasks = ", ".join(f"{t['name'] or t['task']} at {t['context']} tokens x{t['items']}" for t in asked)
        yield (
            f"Answers: {tasks}; {items} items, each also answered by dense attention, "
            f"so one is {1 / items:.3g} of accuracy."
        )
    text = plan.get("perplexity") or {}
    if text:
        yield (
            f"Perplexity: {text['items']} passages of {text['continuation']} tokens "
            f"behind {text['context']} tokens of context."
        )
    found = {} if dense is None else dense.metrics("search")
    right, delta = found.get("accuracy"), found.get(name)
    if right is not None:
        yield f"Dense attention answers {right.value:.0%} of the items right."
    if delta is not None and delta.low is not None and delta.high is not None:
        yield (
            f"{name} of dense attention against itself is {delta.value:.3g} [{delta.low:.3g}, {delta.high:.3g}] "
            f"(n={delta.n}): differences inside that interval are chance."
        )
    elif items:
        yield "Dense attention has not answered yet; a difference of one or two items is chance."


def _screened_and_answered(config: CampaignConfig, state: CampaignState, arm: str | None) -> Iterator[str]:
    """How far the screen told what answers said, by those that have both."""
    if config.screen is None:
        return
    name, objective = config.screen.accuracy, config.objective.accuracy
    both = []
    for candidate in state.candidates.values():
        if candidate.key in state.twins or not (candidate.reference or arm in (None, candidate.arm)):
            continue
        screened, answered = candidate.metrics("screen").get(name), candidate.metrics("search").get(objective)
        full = candidate.metrics("full_screen").get(name)
        if screened is not None and answered is not None:
            both.append((full or screened, answered, candidate.label))
    both.sort(key=lambda row: (-row[0].value, row[2]))
    if both:
        shown = "; ".join(
            f"{label} {screened.value:.2f}: {answered.value:+.3g} of {answered.n}"
            for screened, answered, label in both[:_COMPARED]
        )
        yield f"What the screen said ({name}) and what answers said ({objective}), the best screened first: {shown}."


def _choice(config: CampaignConfig, plan: Mapping[str, Any]) -> Iterator[str]:
    """How many pages a program has to choose, where the campaign gives the budget."""
    given = config.knobs
    if "budget" not in given:
        return
    knobs = Knobs().with_(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})
    kept = knobs.keep_first + knobs.keep_last
    for context in sorted({task["context"] for task in (plan.get("accuracy") or {}).get("tasks", ())}):
        pages = -(-context // knobs.page_size)
        attended = min(pages, knobs.pages(context))
        yield (
            f"At {context} tokens a list holds {attended} of {pages} pages of {knobs.page_size}; "
            f"{min(kept, pages)} are always kept, so the program chooses {max(0, attended - kept)}."
        )


def _speed(config: CampaignConfig, plan: Mapping[str, Any], dense: Candidate | None) -> Iterator[str]:
    """Where speed is asked, and what bytes and launches cost there."""
    name = config.objective.speed
    info = {} if dense is None else dense.info()
    points = (info.get("modelled") or {}).get("gpus", {}).get(name.rpartition("_")[2])
    if points is None:
        points = (info.get("decode") or {}).get("points", {})
    where = ", ".join(f"{context} tokens x {row['batch']} sequences" for context, row in points.items())
    contexts = sorted({task["context"] for task in (plan.get("accuracy") or {}).get("tasks", ())})
    if not where and contexts:
        tokens = ", ".join(map(str, contexts))
        where = f"the contexts of the answers ({tokens} tokens), in batches that the memory holds"
    if where:
        yield f"{name}: a decode step at {where}."
    if name.startswith("modelled_speedup_"):
        try:
            gpu = load_gpu(name.removeprefix("modelled_speedup_"))
        except VortexError:  # a third party's metric by a like name
            return
        launch, megabyte = gpu.launch_overhead_assumed, 1e6 / gpu.usable_bandwidth
        yield (
            f"On {gpu.product} the cost model takes {launch * 1e6:.2g} us for each launch (every layer has its own) "
            f"and {megabyte * 1e6:.2g} us for each megabyte read: a launch weighs as {launch / megabyte:.2g} MB."
        )
