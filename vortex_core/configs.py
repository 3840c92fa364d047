"""Configuration files: one strict loader for models, hardware, plans, campaigns and proposers.

A file is YAML, validated against a pydantic model in which an unknown key is an error. It may begin with
`extends: NAME`, the name of another file of its folder or the path of one beside it: it then states only what
differs. Mappings are merged key by key; lists and plain values are replaced whole. Where every value came from
is kept, so that a command can show it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Generic, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from vortex_core.errors import VortexError
from vortex_core.files import read_text
from vortex_core.registry import unknown_name

EXTENDS = "extends"


class Strict(BaseModel):
    """A frozen record in which an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


S = TypeVar("S", bound=BaseModel)


@dataclass(frozen=True)
class Layer:
    """Values from one place: a file, or a command line.

    Attributes:
        source: path of the file, or words for another place (`command line`).
        values: as in the file, nested.
    """

    source: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Loaded(Generic[S]):
    """A validated configuration and where its values came from.

    Attributes:
        value: the record.
        layers: what was merged, the base first.
        sources: the layer that set a value, by dotted key (`limits.seconds`); a list is one value. Keys that
            are not here have the schema's default.
    """

    value: S
    layers: tuple[Layer, ...]
    sources: Mapping[str, str] = field(default_factory=dict)

    def source_of(self, key: str) -> str:
        """Where the value of a dotted key came from; `default` if nothing set it."""
        parts = key.split(".")
        for end in range(len(parts), 0, -1):
            if (source := self.sources.get(".".join(parts[:end]))) is not None:
                return source
        return "default"


@dataclass(frozen=True)
class ConfigFolder:
    """The files of one kind.

    Attributes:
        name: folder inside `configs/`.
        what: the kind in words, for messages.
        unknown: code of the error for a name that does not exist.
        invalid: code of the error for a file that cannot be read or does not validate.
    """

    name: str
    what: str
    unknown: str
    invalid: str

    def names(self) -> tuple[str, ...]:
        """Names of the files that ship, sorted."""
        return _names(self.name)

    def load(self, name: str, schema: type[S], *, over: Sequence[Layer] = ()) -> S:
        """The value of `read`."""
        return self.read(name, schema, over=over).value

    def read(self, name: str, schema: type[S], *, over: Sequence[Layer] = ()) -> Loaded[S]:
        """A configuration by its name, or by the path of a `.yaml` file.

        Args:
            over: values laid over those of the file, the last one strongest.

        Raises:
            VortexError: `unknown` for a name that does not exist; `invalid` for a file that cannot be read,
                extends itself, or does not validate.
        """
        layers = (*self._chain(self._path(name, Path()), ()), *over)
        merged: dict[str, Any] = {}
        sources: dict[str, str] = {}
        for layer in layers:
            _merge(merged, layer.values, sources, layer.source, "")
        try:
            value = schema.model_validate(merged)
        except ValidationError as error:
            raise self._error(layers[-1].source, "; ".join(_problems(error, sources))) from error
        return Loaded(value, layers, sources)

    def _chain(self, path: Path, below: tuple[Path, ...]) -> list[Layer]:
        """The file's layer behind those of what it extends."""
        chain = (*below, path)
        if path in below:
            raise self._error(str(below[0]), f"extends itself: {' -> '.join(p.name for p in chain)}")
        values = self._parse(path)
        base = values.pop(EXTENDS, None)
        if base is not None and not isinstance(base, str):
            raise self._error(str(path), f"{EXTENDS}: give one name or path, not {base!r}")
        before = [] if base is None else self._chain(self._path(base, path.parent), chain)
        return [*before, Layer(str(path), values)]

    def _path(self, name: str, beside: Path) -> Path:
        if name.endswith((".yaml", ".yml")):
            return beside / name
        if name not in self.names():
            error = unknown_name(self.unknown, self.what, name, self.names())
            error.remedy += "; a file is given by its path, which ends in .yaml"
            raise error
        return _folder(self.name) / f"{name}.yaml"

    def _parse(self, path: Path) -> dict[str, Any]:
        try:
            found = _read_yaml(read_text(path))
        except OSError as error:
            raise self._error(str(path), error.strerror or "unreadable") from error
        except yaml.YAMLError as error:
            raise self._error(str(path), f"not YAML: {error}") from error
        except (ValueError, RecursionError) as error:
            raise self._error(str(path), f"not YAML that is read here: {error}") from error
        if not isinstance(found, dict | None):
            raise self._error(str(path), f"a {type(found).__name__} instead of keys and values")
        return found or {}

    def _error(self, source: str, why: str) -> VortexError:
        return VortexError(self.invalid, f"{self.what} {source}: {why}", "correct the file; nothing was run")


def read_rest(record: BaseModel, schema: type[S], what: str) -> S:
    """Validate the keys of a record that it does not know itself, for a record in which one key chooses a schema.

    The record keeps them normalised, defaults filled in, so that equal settings have equal JSON.

    Args:
        record: made with `extra="allow"`; changed in place, so only a validator of its own may call this.
        what: who the keys belong to, for the message.

    Raises:
        ValueError: all that is wrong, by key.
    """
    rest = record.__pydantic_extra__
    assert rest is not None, "the record forbids extra keys"
    try:
        found = schema.model_validate(rest)
    except ValidationError as error:
        wrong = (f"{'.'.join(map(str, e['loc'])) or 'keys'}: {e['msg']}" for e in error.errors())
        raise ValueError(f"{what}: {'; '.join(wrong)}") from error
    rest.clear()
    rest.update(found.model_dump(mode="json"))
    return found


MAX_VALUES = 10_000  # of a file, each use of an alias counted
_MAX_DEPTH = 50


def _read_yaml(text: str) -> Any:
    """The one document of a text. Raises ValueError for one whose aliases or depth would take the memory."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, 0, {})
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _count(node: yaml.Node, depth: int, known: dict[int, int]) -> int:
    """How many values a node stands for; aliases share nodes, so each is counted once and added often."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"it is nested more than {_MAX_DEPTH} deep, or holds itself")
    if id(node) in known:
        return known[id(node)]
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        children = [child for pair in node.value for child in pair]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    total = 1 + sum(_count(child, depth + 1, known) for child in children)
    if total > MAX_VALUES:
        raise ValueError(f"it stands for more than {MAX_VALUES} values")
    known[id(node)] = total
    return total


class _Loader(yaml.SafeLoader):
    """YAML in which a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """See `yaml.SafeLoader`."""
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value
            if key in seen and key_node.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    "while reading keys", node.start_mark, f"{key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _merge(
    onto: dict[str, Any], values: Mapping[str, Any], sources: dict[str, str], source: str, prefix: str
) -> None:
    """Lay `values` over `onto` in place and note who set what."""
    for key, value in values.items():
        place = f"{prefix}{key}"
        if isinstance(value, Mapping):
            if not isinstance(onto.get(key), dict):
                onto[key] = {}
                sources.pop(place, None)
            if not value:
                sources.setdefault(place, source)
            _merge(onto[key], value, sources, source, f"{place}.")
            continue
        for stale in [k for k in sources if k.startswith(f"{place}.")]:
            del sources[stale]
        onto[key] = value
        sources[place] = source


def _problems(error: ValidationError, sources: Mapping[str, str]) -> Iterator[str]:
    several = len(set(sources.values())) > 1
    for problem in error.errors():
        parts = [str(part) for part in problem["loc"]]
        where = ".".join(parts) or "the file"
        tops = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
        set_by = next((sources[top] for top in tops if top in sources), None) if several else None
        yield f"{where}: {problem['msg']}" + (f" (set in {set_by})" if set_by else "")


def _folder(kind: str) -> Path:
    # The distribution is installed unpacked (ray and torch demand it), so a path always exists.
    return Path(str(resources.files("configs"))) / kind


@cache
def _names(kind: str) -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in _folder(kind).glob("*.yaml")))
