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
    """`VE012`: a model whose attention does not go through the engine's attention hook as it must."""
    return VortexError(
        "VE012", f"{name} cannot be served: {why}", "choose a decoder-only model with full attention"
    )


def unsupported_kv_dtype(wanted: str, have: str) -> VortexError:
    """`VE013`: KV in a type that this pool does not, or cannot, hold."""
    return VortexError(
        "VE013",
        f"kv_dtype={wanted!r}, but this engine keeps K and V in {have}",
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


def capture_failed(model: str, why: str) -> VortexError:
    """`VE017`: a decode step that no CUDA graph can hold."""
    return VortexError(
        "VE017",
        f"a decode step of {model} could not be captured as a CUDA graph: {why}",
        "build the engine with graphs=False; it then launches every kernel from Python",
    )


def unsupported_backend(backend: str, device: str, rule: str) -> VortexError:
    """`VE018`: a backend that does not run on the engine's device."""
    return VortexError(
        "VE018", f"backend {backend!r} on {device}: {rule}", "choose another backend or device"
    )


def no_room_for_states(needed: int, free: int, page: int, layers: int) -> VortexError:
    """`VE019`: page states that do not fit beside the pool. Sizes in bytes.

    Args:
        page: bytes of one page's states in one layer.
        layers: layers that have states.
    """
    return VortexError(
        "VE019",
        f"the flow's page states need {needed / 2**30:.2f} GiB, {free / 2**30:.2f} GiB are free: {page:,} bytes for "
        f"every page in {layers} layers, {page * free // needed:,} would fit",
        "keep fewer states, store them in fewer bits, or take a larger page_size; the engine has more room for states "
        "if it is built with a smaller max_tokens",
    )


def parity_lost(flow: str, apart: float, tolerance: float) -> VortexError:
    """`VE025`: a flow that selects everything and yet differs from dense attention."""
    return VortexError(
        "VE025",
        f"{flow} with everything selected differs from dense attention by {apart:.3g} in a token's "
        f"log-probability on average (at most {tolerance:.3g} is rounding)",
        "do not trust any figure of this machine: run the tests of tests/gpu and report what fails",
    )
