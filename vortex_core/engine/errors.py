"""What a user of the engine can get wrong (`VE...`)."""

from __future__ import annotations

from vortex_core.errors import VortexError


def out_of_memory(what: str, needed: int, fits: int) -> VortexError:
    """`VE010`: a request that could not run even on an idle engine. Sizes in tokens."""
    return VortexError(
        "VE010",
        f"{what} needs {needed} tokens of KV cache, {fits} would fit",
        "shorten it, release prompts, or build the engine with a larger max_tokens",
    )


def bad_prompt(why: str, remedy: str) -> VortexError:
    """`VE011`: token ids that cannot be a prompt."""
    return VortexError("VE011", f"prompt {why}", remedy)


def unsupported_model(name: str, why: str) -> VortexError:
    """`VE012`: a model whose attention does not go through the engine's seam as it must."""
    return VortexError(
        "VE012", f"{name} cannot be served: {why}", "choose a decoder-only model with full attention"
    )


def unsupported_kv_dtype(wanted: str, have: str) -> VortexError:
    """`VE013`: the flow asks for KV in a type that this pool does not hold."""
    return VortexError(
        "VE013",
        f"knob kv_dtype={wanted!r}, but this engine keeps K and V in {have}",
        'set kv_dtype="auto", or build the engine with that dtype',
    )


def bad_sampling(name: str, value: object, rule: str) -> VortexError:
    """`VE014`: a sampling parameter outside its range."""
    return VortexError("VE014", f"sampling {name}={value!r}: {rule}", f"change {name} so that {rule}")


def released_prompt(length: int) -> VortexError:
    """`VE015`: a prompt used after its last release."""
    return VortexError(
        "VE015", f"this prompt of {length} tokens was released", "call prefill again and keep what it returns"
    )


def bad_call(why: str, remedy: str) -> VortexError:
    """`VE016`: arguments that contradict each other."""
    return VortexError("VE016", why, remedy)
