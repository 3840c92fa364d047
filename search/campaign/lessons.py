"""What results say about kinds of change: a fold of the log, so that later results change it, and nothing is asked.

A child is compared with its first parent: what its program and knobs have that the parent's lack, and the other way
round, is what was changed, and whether the child is better is the evidence. The confidence that a change helps is the
posterior mean of a coin of unknown bias, `(helped + 1) / (tried + 2)` (Laplace's rule of succession).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from agents.base import Lesson
from search.campaign.archive import Verdict
from search.campaign.landscape import standing
from search.config import CampaignConfig
from search.log.files import ContentStore
from search.log.state import CampaignState, Candidate
from vortex_core.ir.flow import Flow
from vortex_core.ir.verify import MAX_STATES

EVERY = 5
"""Results between two distillations; of many, a twentieth more."""
_LEAST = 2  # children that a lesson rests on
_POINT = ("budget", "page_size", "reuse_layers", "reuse_steps", "keep_first", "keep_last")
_MOST = 40
_TOGETHER = 4
_COUNT = frozenset(f"{n} states" for n in range(MAX_STATES + 1))
_WORDS = {
    "amax": "per-channel maxima", "amin": "per-channel minima", "softmax": "a softmax",
    "conv": "a convolution", "maxpool": "a maximum over neighbours", "cumsum": "a running sum",
    "mass": "attention mass of earlier steps", "dense_mass": "attention mass of a dense layer in the same step",
    "largest": "a mask of the largest", "principal": "principal directions of a page's keys",
    "split": "groups of a dimension",
    "residual": "an entry for each page left out", "refine": "candidates first, then a dearer score",
    "topp": "top-p", "threshold": "a threshold", "union": "a union of two selections", "v": "the values",
    "position": "the page's position", "exp": "an exponential", "log": "a logarithm", "cast": "rounding inside",
    "slice": "a part of the channels", "channels": "rotary and unrotated channels apart", "where": "a mask",
    "sign": "signs", "abs": "absolute values", "sqrt": "a square root", "div": "a quotient",
    "maximum": "the larger of two",
}  # fmt: skip


@dataclass
class _Evidence:
    tried: int = 0
    helped: int = 0
    accuracy: float = 0.0
    speed: float = 0.0
    measured: int = 0
    names: list[str] = field(default_factory=list)


class Lessons:
    """The lessons of one campaign, distilled again after every `EVERY` results.

    Args:
        files: where programs are kept.
        carried: lessons of other runs, shown behind this run's own and dropped where it has found out itself.
    """

    def __init__(self, files: ContentStore, config: CampaignConfig, carried: tuple[Lesson, ...] = ()) -> None:
        self._files = files
        self._config = config
        screen, whole = config.screen, config.objective
        self._objective = whole if screen is None else screen.objective(whole)
        self._carried = carried
        self._at = -1
        self._found: tuple[Lesson, ...] = carried
        self._traits: dict[str, frozenset[str]] = {}

    def now(self, state: CampaignState) -> tuple[Lesson, ...]:
        """The lessons as they stand, the surest first: those that say most about a change, either way."""
        results = state.finished_found + state.screened_programs
        if self._at < 0 or results >= self._at + max(EVERY, self._at // 20):
            self._at = results
            own = self._distil(state)
            known = {lesson.text.partition(":")[0] for lesson in own}
            later = [lesson for lesson in self._carried if lesson.text.partition(":")[0] not in known]
            self._found = (*own, *later)
        return self._found

    def _distil(self, state: CampaignState) -> tuple[Lesson, ...]:
        evidence: dict[str, _Evidence] = defaultdict(_Evidence)
        for child in state.candidates.values():
            parent = state.candidates.get(child.parents[0]) if child.parents else None
            if parent is None or standing(parent, self._config) is None or self._moved(child, parent):
                continue
            if standing(child, self._config) is None and "failed" not in (
                child.status("screen"),
                child.status(),
            ):
                continue
            helped, accuracy, speed = self._compare(child, parent)
            for change in self._changes(child, parent):
                one = evidence[change]
                one.tried += 1
                one.helped += helped
                one.names.append(child.label)
                if accuracy is not None and speed is not None:
                    one.measured += 1
                    one.accuracy += accuracy
                    one.speed += speed
        # What the same children show is one lesson, not one for each thing that they have in common.
        together: dict[tuple[str, ...], list[str]] = defaultdict(list)
        for change, one in evidence.items():
            if one.tried >= _LEAST:
                together[tuple(one.names)].append(change)
        lessons = [self._lesson(_joined(changes), evidence[changes[0]]) for changes in together.values()]
        lessons.sort(key=lambda lesson: (-abs(lesson.confidence - 0.5), -lesson.tried, lesson.text))
        return tuple(lessons[:_MOST])

    def _moved(self, child: Candidate, parent: Candidate) -> bool:
        """Whether the campaign itself gave the child other knobs: a difference would be theirs, and no change's."""
        return any(child.knobs.get(knob) != parent.knobs.get(knob) for knob in self._config.knobs)

    def _compare(self, child: Candidate, parent: Candidate) -> tuple[bool, float | None, float | None]:
        """Whether the child is better (a better verdict, or no worse in one axis and better in the other), and its
        differences, where both are measured."""
        after, before = standing(child, self._config), standing(parent, self._config)
        if after is None or before is None:
            return False, None, None
        accuracy, speed = after.point[0] - before.point[0], after.point[1] - before.point[1]
        if after.verdict is not before.verdict:
            return after.verdict < before.verdict, accuracy, speed
        better = accuracy >= 0 and speed >= 0 and (accuracy > 0 or speed > 0)
        if after.verdict is not Verdict.FAILED:  # among those that keep the gates, faster wins
            better = better or speed > 0
        return better, accuracy, speed

    def _lesson(self, change: str, one: _Evidence) -> Lesson:
        text = f"{change}: "
        if one.measured:
            text += f"{self._objective.accuracy} {one.accuracy / one.measured:+.3g}, "
            text += f"{self._objective.speed} {one.speed / one.measured:+.3g} on average"
        stopped = one.tried - one.measured
        if stopped:
            text += (
                f"{'; ' if one.measured else ''}{stopped} of {one.tried} stopped before they were measured"
            )
        return Lesson(text, one.tried, one.helped, (one.helped + 1) / (one.tried + 2), tuple(one.names))

    def _changes(self, child: Candidate, parent: Candidate) -> Iterator[str]:
        moved = [
            f"knob {knob} {_direction(parent.knobs.get(knob), child.knobs.get(knob))}"
            for knob in _POINT
            if child.knobs.get(knob) != parent.knobs.get(knob)
        ]
        if (
            moved and child.ir_hash != parent.ir_hash
        ):  # what was the program's, and what the budget's, nobody can tell
            yield f"another program with {_joined(moved)}, both at once"
            return
        yield from moved
        after, before = self._of(child), self._of(parent)
        counted = [_COUNT & of for of in (after, before)]
        more, fewer = (int(next(iter(of)).split()[0]) for of in counted)
        if more != fewer:
            yield "more states" if more > fewer else "fewer states"
        after, before = after - _COUNT, before - _COUNT
        yield from (f"with {trait}" for trait in sorted(after - before) if not trait.startswith("-"))
        yield from (f"without {trait}" for trait in sorted(before - after) if not trait.startswith("-"))

    def _of(self, candidate: Candidate) -> frozenset[str]:
        if candidate.key not in self._traits:
            self._traits[candidate.key] = traits(candidate.flow(self._files))
        return self._traits[candidate.key]


def traits(flow: Flow) -> frozenset[str]:
    """What a program has, in words a lesson can be made of."""
    found = set()
    for graph in (flow.program.cache, flow.program.index):
        found |= {_WORDS[node.op] for node in graph.nodes if node.op in _WORDS}
    for state in flow.program.states:
        found.add(f"a state in {state.dtype}")
        if state.of_request:
            found.add("a state of the request")
            continue
        rows = [name for name, _ in state.dims if name != "dim"]
        found.add("states of several rows a page" if rows else "a state of one row a page")
    found.add(f"{len(flow.program.states)} states")
    return frozenset(found)


def carried(found: tuple[Lesson, ...], run: str) -> tuple[Lesson, ...]:
    """Lessons of a run as another takes them over."""
    return tuple(replace(lesson, source=lesson.source or run) for lesson in found)


def _joined(changes: list[str]) -> str:
    """Changes that always came together, in words."""
    shown = " and ".join(sorted(changes)[:_TOGETHER])
    return f"{shown} and {len(changes) - _TOGETHER} more" if len(changes) > _TOGETHER else shown


def _direction(before: object, after: object) -> str:
    try:
        return "raised" if float(str(after)) > float(str(before)) else "lowered"
    except ValueError:
        return "of another form"
