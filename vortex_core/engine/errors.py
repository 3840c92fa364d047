"""What a user of the engine can get wrong (`VE...`)."""

from __future__ import annotations

from vortex_core.errors import VortexError


def out_of_memory(what: str, needed: int, fits: int) -> VortexError:
    """`VE001`: a request that could not run even on an idle engine. Sizes in tokens."""
    return VortexError(
        "VE001",
        f"{what} needs {needed} tokens of KV cache, {fits} would fit",
        "shorten it, release prompts, or build the engine with a larger max_tokens",
    )


def bad_prompt(why: str, remedy: str) -> VortexError:
    """`VE002`: token ids that cannot be a prompt."""
    return VortexError("VE002", f"prompt {why}", remedy)


def unsupported_model(name: str, why: str) -> VortexError:
    """`VE003`: a model whose attention does not go through the engine's seam as it must."""
    return VortexError(
        "VE003", f"{name} cannot be served: {why}", "choose a decoder-only model with full attention"
    )


def unsupported_kv_dtype(wanted: str, have: str) -> VortexError:
    """`VE004`: the flow asks for KV in a type that this pool does not hold."""
    return VortexError(
        "VE004",
        f"knob kv_dtype={wanted!r}, but this engine keeps K and V in {have}",
        'set kv_dtype="auto", or build the engine with that dtype',
    )


def bad_sampling(name: str, value: object, rule: str) -> VortexError:
    """`VE005`: a sampling parameter outside its range."""
    return VortexError("VE005", f"sampling {name}={value!r}: {rule}", f"change {name} so that {rule}")


def released_prompt(length: int) -> VortexError:
    """`VE006`: a prompt used after its last release."""
    return VortexError(
        "VE006", f"this prompt of {length} tokens was released", "call prefill again and keep what it returns"
    )


def bad_call(why: str, remedy: str) -> VortexError:
    """`VE007`: arguments that contradict each other."""
    return VortexError("VE007", why, remedy)
