"""Stand-ins for what a vortex_torch program imports: its own package, `torch` and `typing`."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from vortex_core.dialects.vortex_torch import cache, indexer
from vortex_core.ir import mistakes


class vFlow:
    """Base class of flows over keys and values."""

    def __init__(self) -> None:
        self.block_size: int | None = None
        self.head_dim: int | None = None

    def create_cache(self, block_size: int, head_dim: int) -> dict[str, tuple[int, int]]:
        """No fields by default."""
        return {}

    def forward_cache(self, cache: Any, loc: Any, ctx: Any) -> None:
        """Nothing by default."""

    def forward_indexer(self, q: Any, o: Any, cache: Any, ctx: Any) -> None:
        """What every flow writes."""
        raise mistakes.MISSING_METHOD.error(
            cls=type(self).__name__,
            method="forward_indexer",
            signature="forward_indexer(self, q, o, cache, ctx)",
        )


class vFlowMLA(vFlow):
    """Base class of flows over the fused latent."""

    def __init__(self) -> None:
        super().__init__()
        self.kv_lora_rank: int | None = None
        self.qk_rope_head_dim: int | None = None
        self.latent_dim: int | None = None

    def create_cache(  # type: ignore[override]  # that system gives it other arguments
        self, block_size: int, kv_lora_rank: int, qk_rope_head_dim: int
    ) -> dict[str, tuple[int, int]]:
        """No fields by default."""
        return {}


class Annotation:
    """A name that only annotations use: `Dict[str, torch.Tensor]`."""

    def __getitem__(self, key: object) -> Annotation:
        return self

    def __or__(self, other: object) -> Annotation:
        return self

    __ror__ = __or__

    def __call__(self, *args: object, **kwargs: object) -> NoReturn:
        raise mistakes.DIALECT_TORCH.error(what="creating a tensor or type")


class Module:
    """A module with a fixed list of names, each with a reason where it has none."""

    def __init__(self, name: str, known: Mapping[str, Any], missing: Mapping[str, str]) -> None:
        self.__name__ = name
        self._known, self._missing = known, missing

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in self._known:
            return self._known[name]
        if self.__name__ == "torch":
            raise mistakes.DIALECT_TORCH.error(what=f"torch.{name}")
        if name in self._missing:
            raise mistakes.DIALECT_NO_EQUIVALENT.error(
                what=f"{self.__name__}.{name}", why=self._missing[name], remedy=f"do without {name}"
            )
        near = difflib.get_close_matches(name[:100], self._known, 3)
        raise mistakes.DIALECT_IMPORT.error(
            module=self.__name__, name=name, known=", ".join(near or sorted(self._known))
        )


_DTYPES = ("float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int8", "int32", "int64", "bool")
_TYPING = (
    "Any", "Callable", "ClassVar", "Dict", "Final", "Iterable", "List", "Mapping", "Optional", "Sequence",
    "Set", "Tuple", "Union",
)  # fmt: skip


def importer(registry: dict[str, type]) -> Callable[..., Any]:
    """An `__import__` that knows the stand-ins only. `registry` receives what `@register` registers."""

    def register(name: str) -> Callable[[type], type]:
        def wrap(cls: type) -> type:
            registry[name] = cls
            return cls

        return wrap

    flow = Module(
        "vortex_torch.flow",
        {"vFlow": vFlow, "vFlowMLA": vFlowMLA, "register": register, "_REGISTRY": registry},
        {
            "build_vflow": "it starts that system's engine",
            "algorithms": "its bundled flows are in our library under their papers' names",
        },
    )
    shared = {name: Annotation() for name in ("ContextBase", "vTensor", "FORMAT", "vOp", "Context")}
    inner = Module("vortex_torch.indexer", indexer.OPERATORS, indexer.MISSING)
    outer = Module("vortex_torch.cache", {**cache.OPERATORS, "Context": shared["Context"]}, cache.MISSING)
    found = {
        "flow": flow,
        "indexer": inner,
        "cache": outer,
        "abs": Module("vortex_torch.abs", shared, {}),
    }
    others = {
        "torch": Module("torch", {n: Annotation() for n in ("Tensor", "dtype", "device", *_DTYPES)}, {}),
        "typing": Module("typing", {n: Annotation() for n in _TYPING}, {}),
        "math": math,
        "__future__": Module("__future__", {"annotations": None}, {}),
    }

    package = Module(
        "vortex_torch", {**found, "vFlow": vFlow, "vFlowMLA": vFlowMLA, "register": register}, {}
    )

    def load(
        name: str, namespace: object = None, scope: object = None, names: object = None, level: int = 0
    ) -> Any:
        head, _, rest = name.partition(".")
        if level:  # its bundled programs lie in the package: `.flow`, `.registry`, `..indexer`
            return package if not head else found.get(head, flow)
        if head != "vortex_torch":
            return others[name]
        part = rest.partition(".")[0]
        if not part or (
            not names and part in found
        ):  # `import vortex_torch.indexer as vi` asks the package for it
            return package
        if part in found:
            return found[part]
        raise mistakes.DIALECT_IMPORT.error(module="vortex_torch", name=part, known=", ".join(found))

    return load
