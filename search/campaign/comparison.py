"""Is one program better than another? Paired on the items both answered; no verdict without an interval."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from evaluators.results import TOKEN_TASKS, Metric
from search.campaign.archive import Archive
from search.config import Objective
from search.log.events import Purpose
from search.log.state import CampaignState, Candidate

Finding = Literal["better", "inconclusive", "not better"]
_FASTER = 1.01  # a modelled ratio has no interval; a per cent is more than its rounding and less than matters


@dataclass(frozen=True)
class Comparison:
    """`ours` against `theirs`.

    Attributes:
        purpose: which items they both answered.
        items: how many.
        accuracy: difference of the means over the items, with a 95% interval (`evaluators.sequential.paired_scores`).
        speed: ratio of the objective's speed metric; an interval only where it was measured.
        finding: `better` if it is faster and the interval of the accuracy difference lies above minus the
            margin, or if it is surely more accurate and not slower; `inconclusive` if only the interval
            stands in the way; else `not better`.
        words: the same for people.
    """

    ours: str
    theirs: str
    purpose: Purpose
    items: int
    accuracy: Metric
    speed: Metric
    finding: Finding
    words: str

    def to_json(self) -> dict[str, Any]:
        """Plain dict."""
        return asdict(self)


def common_items(ours: Candidate, theirs: Candidate, purpose: Purpose) -> tuple[list[float], list[float]]:
    """Answers to the items that both were asked, in the same order. Log-likelihoods are on another scale."""
    a, b = ours.items(purpose), theirs.items(purpose)
    left: list[float] = []
    right: list[float] = []
    for task in sorted((a.keys() & b.keys()) - TOKEN_TASKS):
        # A run that was stopped early answered the first items only; the rest has no partner.
        n = min(len(a[task]), len(b[task]))
        left += a[task][:n]
        right += b[task][:n]
    return left, right


def accuracy_difference(left: list[float], right: list[float]) -> Metric:
    """Mean difference of paired outcomes with its interval. Both lists must not be empty."""
    from evaluators.sequential import paired_scores  # scipy takes a second

    found = paired_scores(left, right)
    return Metric(found.value, found.low, found.high, n=found.n)


def speed_ratio(ours: Metric, theirs: Metric) -> Metric:
    """Ratio of two speeds. Intervals, if any, are combined end to end, which errs on the wide side."""
    low = high = None
    if ours.low is not None and ours.high is not None and theirs.low and theirs.high:
        low, high = ours.low / theirs.high, ours.high / theirs.low
    return Metric(ours.value / theirs.value, low, high, unit="x", how=ours.how)


def compare(ours: Candidate, theirs: Candidate, objective: Objective, purpose: Purpose) -> Comparison | None:
    """Compare two candidates, or None where they share no items or lack a speed."""
    left, right = common_items(ours, theirs, purpose)
    a = {**ours.metrics(), **ours.metrics(purpose)}.get(objective.speed)
    b = {**theirs.metrics(), **theirs.metrics(purpose)}.get(objective.speed)
    if not left or a is None or b is None:
        return None
    accuracy, speed = accuracy_difference(left, right), speed_ratio(a, b)
    assert accuracy.low is not None
    surely_faster = speed.value >= _FASTER if speed.low is None else speed.low > 1.0
    kept, surely_kept = accuracy.value >= -objective.margin, accuracy.low >= -objective.margin
    if (surely_faster and surely_kept) or (accuracy.low > 0 and speed.value >= 1.0):
        finding: Finding = "better"
    elif speed.value > 1.0 and kept:
        finding = "inconclusive"
    else:
        finding = "not better"
    return Comparison(
        ours=ours.key,
        theirs=theirs.key,
        purpose=purpose,
        items=len(left),
        accuracy=accuracy,
        speed=speed,
        finding=finding,
        words=_words(ours, theirs, accuracy, speed, finding, objective, len(left), purpose),
    )


def at_equal_cost(
    ours: Candidate, theirs: Candidate, objective: Objective, purpose: Purpose, model: str
) -> Comparison | None:
    """A winner beside a library program of its budget and at most its state bytes: accuracy alone decides.

    Returns:
        None where they share no items. `better` where the whole interval lies above 0.
    """
    left, right = common_items(ours, theirs, purpose)
    if not left:
        return None
    found = accuracy_difference(left, right)
    assert found.low is not None
    assert found.high is not None
    finding: Finding = "better" if found.low > 0 else "not better" if found.high < 0 else "inconclusive"
    verb = {
        "better": "beats",
        "inconclusive": "is not told apart from",
        "not better": "loses to",
    }[finding]
    words = (
        f"At equal budget and state bytes it {verb} {theirs.name} on {model}: accuracy difference "
        f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}] on {len(left)} sealed items."
    )
    screened = (
        {**ours.metrics("screen")}.get(objective.speed),
        {**theirs.metrics("screen")}.get(objective.speed),
    )
    speed = Metric(1.0) if None in screened else speed_ratio(*screened)  # type: ignore[arg-type]  # none is None
    return Comparison(ours.key, theirs.key, purpose, len(left), found, speed, finding, words)


def _words(
    ours: Candidate,
    theirs: Candidate,
    accuracy: Metric,
    speed: Metric,
    finding: Finding,
    objective: Objective,
    items: int,
    purpose: Purpose,
) -> str:
    assert accuracy.high is not None
    verb = {
        "better": "beats",
        "inconclusive": "may beat (the interval does not settle it)",
        "not better": "does not beat",
    }[finding]
    if accuracy.high < 0:  # that it answers worse is proven, whatever the margin forgives
        verb = {
            "better": "is faster and within the margin, but surely answers worse than",
            "inconclusive": "surely answers worse (within the margin by value only) than",
            "not better": "does not beat, and surely answers worse than",
        }[finding]
    interval = "" if speed.low is None else f" [{speed.low:.3f}, {speed.high:.3f}]"
    return (
        f"{ours.label} {ours.name} {verb} {theirs.label} {theirs.name}: "
        f"{objective.speed} x{speed.value:.3f}{interval} ({speed.how}), accuracy difference "
        f"{accuracy.value:+.3f} [{accuracy.low:+.3f}, {accuracy.high:+.3f}] "
        f"on {items} paired {purpose} items, margin {objective.margin:g}"
    )


def against_control(
    state: CampaignState, objective: Objective, main: set[str], control: set[str]
) -> dict[str, Any]:
    """Main arms against control arms after equally many evaluations, by hypervolume of what keeps the gates.

    One run gives one pair of numbers: the words say so.
    """
    archive = Archive(state, objective)
    ours = archive.hypervolume_by_evaluation(main)
    theirs = archive.hypervolume_by_evaluation(control)
    n = min(len(ours), len(theirs))
    if n == 0:
        return {"evaluations": 0, "words": "no control arm was evaluated; nothing is known about luck"}
    a, b = ours[n - 1], theirs[n - 1]
    relation = "ahead of" if a > b else "behind" if a < b else "level with"
    return {
        "evaluations": n,
        "main": a,
        "control": b,
        "words": (
            f"after {n} evaluations each, {'+'.join(sorted(main))} is {relation} {'+'.join(sorted(control))} "
            f"by hypervolume ({a:.4f} and {b:.4f}); one run, so this is an observation without an interval"
        ),
    }
