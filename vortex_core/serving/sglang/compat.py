"""What SGLang has moved between the versions that are served: every home it has had, newest first.

The installed shape is asked, never a version number; `contract.py` checks that one home of each is there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from importlib import import_module
from typing import Any

# Called with the server's arguments, whether the model is MLA, and SGLang's model configuration.
DEFAULT_BACKEND = (
    "sglang.srt.arg_groups.model_override_base:get_default_attn_backend",
    "sglang.srt.server_args:ServerArgs._get_default_attn_backend",
)
_CONTEXT = "sglang.srt.runtime_context:RuntimeContext"
_ARGUMENTS = "sglang.srt.server_args:ServerArgs"


def setting(args: Any, name: str) -> Any:
    """A setting of the server as it is in effect, not as it was asked for.

    Where SGLang publishes settings by name, its `ServerArgs` may keep only what the user gave (0.5.19).
    Before, resolved values were written back to the fields of `ServerArgs`.

    Args:
        args: the runner's `server_args`.
    """
    if not _publishes():
        return getattr(args, name)
    from sglang.srt.runtime_context import get_context

    return get_context().config_leaf(name)


def setting_names() -> Collection[str]:
    """All that `setting` can read."""
    args = resolve(_ARGUMENTS)
    if not _publishes():
        return tuple(getattr(args, "__dataclass_fields__", ()))
    namespaces = resolve("sglang.srt.arg_groups.arg_utils:namespace_of")
    return () if namespaces is None else tuple(namespaces(args))


def attention_backends(args: Any) -> tuple[str, str]:
    """Names of the backends that prefill and that decode, as the server is set."""
    base = setting(args, "attention_backend")
    prefill, decode = (setting(args, f"{phase}_attention_backend") for phase in ("prefill", "decode"))
    return prefill or base, decode or base


def default_backend(args: Any, is_mla: bool, model: Any) -> str:
    """The backend that SGLang itself takes for this device and `model`, its `ModelConfig`."""
    return str(first(DEFAULT_BACKEND)(args, is_mla, model))


def first(places: tuple[str, ...]) -> Callable[..., Any]:
    """The first of these that exists. Raises `LookupError` where none does: `contract.check` comes before."""
    for place in places:
        found = resolve(place)
        if found is not None:
            return found
    raise LookupError(places)


def resolve(place: str) -> Callable[..., Any] | None:
    """What `module:path.of.names` names, or None."""
    module, _, path = place.partition(":")
    try:
        found: Any = import_module(module)
        for name in path.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError):
        return None
    return found


def _publishes() -> bool:
    return hasattr(resolve(_CONTEXT), "config_leaf")
