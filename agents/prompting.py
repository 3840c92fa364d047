"""Requests as prompts. What candidates wrote or printed enters only as marked data."""

from __future__ import annotations

import hashlib
import json
import math
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from agents.base import CHANGES, Attempt, Lesson, ProposalRequest, Standing
from agents.directions import direction
from agents.errors import ProposerError

_FOLDER = Path(__file__).parent / "prompts"
# Controls, formats (bidirectional marks, zero-width, tags), surrogates, private use, odd line ends: invisible
# to a reader, visible to a model.
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
_FIRST = (
    "failure",
    "error",
    "bottleneck",
    "roofline",
    "bound",
    "limit",
    "worst",
    "lost",
)
_MAPS = ("by_layer", "by_head", "layers")  # a number for each layer or head: to look things up in, so last
# How a measurement went, not what it says of the program.
_NOISE = re.compile(
    r"(seconds|tied_rows|\.n|\.weight|(^|\.)states|clock|neighbours|measured_on|_interval|density_by_layer)$"
)
# Of a program's densities the first that it has is shown: all are at its own budget.
_DENSITIES = ("screen_own_density", "density", "accuracy_density")
_ASIDE = ("screen_density", *_DENSITIES, "compile_seconds")
_RECORDING = re.compile(r"\.attention-[0-9a-f]{8,}")  # a file's name, of which a reader learns nothing
_HEX = re.compile(r"[0-9a-f]{2,}")
# Of a model's description, what says nothing of its attention.
_UNTOLD = frozenset(
    {"hf_id", "pypi", "shipped", "weights_of", "vocab", "tie_embeddings", "intermediate", "parameters"}
)
_MAX_OBSERVATIONS = 60
_DEEP = 2  # levels below which what belongs together stands on one line
_OBSERVED = 3000  # characters of observations that are no maps
_MAPPED = 900  # and of maps
_MAX_REASONS = 8
_MAX_ROWS = 96  # layers of a map
_MAX_ATTEMPTS = 3
_MAX_LESSONS = 12
_PARENTS = {"seed": (0, 2), "crossover": (2, 2), "repair": (0, 2)} | dict.fromkeys(CHANGES, (1, 2))


def visible(text: str) -> str:
    """`text` without hidden characters; newlines and tabs stay."""
    if text.isprintable():
        return text  # the common case, at the speed of C
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in _HIDDEN)


def bounded(text: str, limit: int) -> str:
    """At most `limit` characters of `text`: its beginning and its end, and how much is left out between."""
    text = visible(text)
    if len(text) <= limit:
        return text
    tail = limit // 4
    return f"{text[: limit - tail]}\n[... {len(text) - limit} characters left out ...]\n{text[-tail:]}"


def line(text: object, limit: int = 200) -> str:
    """`text` on one line of at most `limit` characters."""
    flat = " ".join(visible(str(text)).split())
    return flat if len(flat) <= limit else flat[: limit - 3] + "..."


def data(text: str, label: str, limit: int) -> str:
    """A marked block of foreign text. Its tag is a hash of the text, so the text cannot hold its own end."""
    tag = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:12]
    return f"<<<DATA {tag} {label}\n{bounded(text, limit).rstrip()}\n{tag} DATA>>>"


def metrics(values: Mapping[str, Mapping[str, Any]], objective: str = "") -> str:
    """One line a metric: value, interval, unit, direction, and whether it was measured or modelled. Those that the
    objective names come first; modelled speeds that it does not name, and all densities but one, are left out."""
    density = next((name for name in _DENSITIES if name in values), None)
    shown = [
        name
        for name in sorted(values, key=lambda name: (name not in objective, name))
        if name not in _ASIDE and (name in objective or not objective or not name.startswith("modelled_"))
    ]
    lines = [_metric(name, values[name]) for name in shown]
    if density is not None:
        lines.append(_metric("density", values[density]))
    return "\n".join(lines)


def _metric(name: str, m: Mapping[str, Any]) -> str:
    text = f"{line(name, 60)} = {_value(m)}"
    if m.get("unit"):
        text += f" {line(m['unit'], 40)}"
    notes = [line(m["how"], 20)] if m.get("how") else []
    if "higher_is_better" in m:
        notes.append("higher is better" if m["higher_is_better"] else "lower is better")
    if isinstance(m.get("n"), int) and m["n"] > 1:
        notes.append(f"n={m['n']}")
    return f"{text} ({', '.join(notes)})" if notes else text


def _number(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return line(value, 40)
    return f"{value:.4g}" if math.isfinite(value) else str(value)


def observations(info: Mapping[str, Any]) -> str:
    """Nested side information as `path: value` lines: failures, bottlenecks and worst cases first, maps last. Each part
    has its own bound, so that neither crowds out the other."""
    last = {name: inner for name, inner in info.items() if name != "screen" or "full_screen" not in info}
    found = _flatten(last, "")
    lines = [(_RECORDING.sub("", path), value) for path, value in found if not _NOISE.search(path)]
    maps = [pair for pair in lines if pair[0].endswith(_MAPS)]
    lines = [pair for pair in lines if not pair[0].endswith(_MAPS)]
    lines.sort(key=lambda pair: not any(word in pair[0].lower() for word in _FIRST))
    return "\n".join([*_within(lines, _OBSERVED), *_within(maps, _MAPPED)])


def _within(pairs: Sequence[tuple[str, str]], limit: int) -> list[str]:
    """As many whole lines as `limit` characters hold, and how many are left out."""
    shown: list[str] = []
    for path, value in pairs[:_MAX_OBSERVATIONS]:
        shown.append(f"{path}: {value}")
        if sum(map(len, shown)) > limit:
            shown.pop()
            break
    left = len(pairs) - len(shown)
    return [*shown, f"[... {left} more ...]"] if left else shown


def _flatten(value: object, path: str) -> Iterator[tuple[str, str]]:
    match value:
        case Mapping() if path.endswith(_MAPS) and _is_flat(value):
            yield path, ", ".join(f"{line(key, 20)}: {_number(inner)}" for key, inner in value.items())
        case Mapping() if path.count(".") >= _DEEP and _is_flat(value):
            yield path, _pairs(value)
        case Mapping():
            for key, inner in value.items():
                yield from _flatten(inner, f"{path}.{line(key, 60)}" if path else line(key, 60))
        case list() | tuple() if value and path.endswith("by_head") and all(map(_is_hex, value)):
            rows = [_digits(row) for row in value[:_MAX_ROWS]]
            yield path, f"{' '.join(rows)} (tenths, a digit a head, a word a layer)"
        case list() | tuple() if len(value) > 8 and all(isinstance(v, float) and 0 <= v <= 1 for v in value):
            # A share for each layer or head: a compact map in percent instead of the first few.
            yield path, f"{' '.join(f'{v * 100:.0f}' for v in value[:128])} (%, in order)"
        case list() | tuple() if all(isinstance(v, int | float | str) for v in value):
            items = ", ".join(_number(v) for v in value[:16])
            yield path, items + (f", ... ({len(value)} values)" if len(value) > 16 else "")
        case list() | tuple() if all(isinstance(v, Mapping) and _is_flat(v) for v in value):
            yield path, line("; ".join(map(_pairs, value[:8])), 600)
        case list() | tuple():
            for index, inner in enumerate(value[:8]):
                yield from _flatten(inner, f"{path}[{index}]")
        case int() | float():
            yield path, _number(value)
        case _:
            yield path, line(value, 300)


def _is_flat(value: Mapping[str, Any]) -> bool:
    return all(isinstance(inner, int | float | str) for inner in value.values())


def _pairs(value: Mapping[str, Any]) -> str:
    """What a row of a table holds, on one line."""
    told = {key: inner for key, inner in value.items() if not _NOISE.search(f".{key}")}
    return ", ".join(f"{line(key, 40)} {_number(inner)}" for key, inner in told.items())


def _is_hex(value: object) -> bool:
    return isinstance(value, str) and _HEX.fullmatch(value) is not None and len(value) % 2 == 0


def _digits(row: str) -> str:
    """Shares of 255, two hexadecimal digits each, as tenths rounded down: `9` is 0.9 or more."""
    return "".join(str(min(9, 10 * byte // 255)) for byte in bytes.fromhex(row[:256]))


def served(model: Mapping[str, Any]) -> str:
    """A model's shapes on one line."""
    return line(_json({k: v for k, v in model.items() if k not in _UNTOLD and v is not None}), 1000)


def failures(ledger: Sequence[Attempt]) -> str:
    """What failed, grouped by stage and code, the most frequent first; the latest of each group are named."""
    groups: dict[tuple[str, str], list[Attempt]] = {}
    for attempt in ledger:
        groups.setdefault((attempt.stage, attempt.code), []).append(attempt)
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    shown = []
    for (stage, code), found in ordered[:_MAX_REASONS]:
        shown.append(f"{len(found)}x stopped at {line(stage, 20)} ({line(code, 8)}), latest:")
        shown += [f"  {_attempt(attempt)}" for attempt in found[: -_MAX_ATTEMPTS - 1 : -1]]
    if len(ordered) > _MAX_REASONS:
        shown.append(f"[... {len(ordered) - _MAX_REASONS} more kinds of failure ...]")
    return "\n".join(shown)


_RELATIONS = (
    ("best", "The front so far, from the most accurate to the fastest, then the best of the rest:"),
    ("library", "Published programs, measured alike:"),
    ("ancestor", "How the first parent came about, oldest first, itself last:"),
    ("child", "What was tried from the first parent already:"),
)


def standings(rows: Sequence[Standing], given: Mapping[str, Any] | None = None) -> str:
    """Candidates one a line under what they are to the request, each with its numbers and intervals.

    Args:
        given: knobs that the campaign gives every program; a row names those of its own that differ.
    """
    shown: list[str] = []
    known: dict[str, str] = {}
    for relation, title in _RELATIONS:
        found = [row for row in rows if row.relation == relation]
        if found:
            shown += [title, *(f"  {_standing(row, known, given or {})}" for row in found)]
    return "\n".join(shown)


def _standing(row: Standing, known: dict[str, str], given: Mapping[str, Any]) -> str:
    """One row; `known` is who showed these figures first: two that agree in all select alike where they were asked."""
    numbers = ", ".join(f"{line(name, 40)} {_value(m)}{_items(m)}" for name, m in row.metrics.items())
    knobs = _knobs({knob: value for knob, value in row.knobs.items() if given.get(knob) != value})
    twin = known.setdefault(f"{knobs} {numbers}", row.name) if numbers else row.name
    if twin != row.name:
        numbers = f"every figure as {line(twin, 60)}, so it selects alike where it was asked"
    idea = row.idea and f"({line(row.idea, 140)})"
    parts = (line(row.name, 60), knobs and f"[{knobs}]", f"{row.verdict}:", numbers, row.note, idea)
    return line(" ".join(part for part in parts if part), 480)


def _items(m: Mapping[str, Any]) -> str:
    """On how many items a difference of answers rests."""
    return (
        f" of {m['n']}"
        if isinstance(m.get("n"), int) and m["n"] > 1 and m.get("how", "") in ("", "measured")
        else ""
    )


def _value(m: Mapping[str, Any]) -> str:
    """A number with its interval, where it has one."""
    text = _number(m.get("value"))
    if m.get("low") is not None and m.get("high") is not None:
        text += f" [{_number(m['low'])}, {_number(m['high'])}]"
    return text


def _knobs(knobs: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={knobs[name]}" for name in ("page_size", "budget") if name in knobs)


def moved(knobs: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """Knobs that are not as the campaign gives them, in words; empty where all are."""
    other = [f"{name} {knobs[name]} (not {given[name]})" for name in given if knobs.get(name) != given[name]]
    return line(", ".join(other), 300)


def _attempt(attempt: Attempt) -> str:
    """One failed candidate: its name, settings, idea, numbers, and why it failed."""
    numbers = ", ".join(f"{name} {_number(value)}" for name, value in attempt.metrics.items())
    parts = [
        attempt.name,
        f"[{_knobs(attempt.knobs)}]",
        attempt.idea and f"({line(attempt.idea, 120)})",
        numbers,
        attempt.reason,
    ]
    return line(" ".join(part for part in parts if part), 360)


def lessons(found: Sequence[Lesson]) -> str:
    """One line a lesson, with what it rests on."""
    return "\n".join(
        f"{lesson.confidence:.0%} likely to help ({lesson.helped} of {lesson.tried}): {line(lesson.text, 200)} "
        f"[{line(', '.join(lesson.evidence[-3:]), 80)}{f'; of {line(lesson.source, 40)}' if lesson.source else ''}]"
        for lesson in found[:_MAX_LESSONS]
    )


def listed(rows: Sequence[str]) -> str:
    """One line each."""
    return "\n".join(f"- {line(row, 240)}" for row in rows)


def version() -> str:
    """Identity of the templates: which prompts a session asked with."""
    texts = [path.name + path.read_text(encoding="utf-8") for path in sorted(_FOLDER.glob("*.j2"))]
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:12]


def _json(value: object, indent: int | None = None) -> str:
    return json.dumps(value, indent=indent, ensure_ascii=False, default=str)


@cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # prompts are not HTML
    )
    environment.filters.update(
        bounded=bounded,
        line=line,
        data=data,
        metrics=metrics,
        observations=observations,
        failures=failures,
        standings=standings,
        listed=listed,
        moved=moved,
        lessons=lessons,
        served=served,
        inline_json=lambda value: line(_json(value), 1000),
        pretty_json=lambda value: _json(value, indent=1),
    )
    return environment


def system_prompt(language: str) -> str:
    """The part that is the same in every call of a campaign: role, contract, language, form of the answer."""
    return _templates().get_template("system.j2").render(language=language)


def user_prompt(request: ProposalRequest) -> str:
    """The part that differs: parents with their measurements, the ledger, or the error to mend.

    Raises:
        ProposerError: `VA004` if the request lacks what its kind needs.
    """
    check(request)
    template = _templates().get_template(f"{request.kind}.j2")
    text = template.render(
        request=request, direction=direction(request.kind, request.seed, request.knobs)
    ).strip()
    # No two asks of a campaign are the same text: asked the same twice, a model answers the same.
    return f"{text}\n{f'(Ask {request.number} of this campaign.){chr(10)}' if request.number else ''}"


def check(request: ProposalRequest) -> None:
    """Refuse a request that lacks what its kind needs (`VA004`)."""
    if request.kind not in _PARENTS:
        raise ProposerError(
            "VA004", f"kind {request.kind!r} is not known", f"use one of {', '.join(sorted(_PARENTS))}"
        )
    low, high = _PARENTS[request.kind]
    if not low <= len(request.parents) <= high:
        raise ProposerError(
            "VA004",
            f"a {request.kind} request has {len(request.parents)} parents",
            f"give {low}" if low == high else f"give {low} to {high}",
        )
    if request.kind == "repair" and request.failed is None:
        raise ProposerError("VA004", "a repair request has nothing to repair", "set `failed`")
