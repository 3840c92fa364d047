"""What can keep a flow from being served (`VE03x`). A server that meets one of these does not start."""

from __future__ import annotations

from collections.abc import Sequence

from vortex_core.errors import VortexError


def bad_bundle(source: str, why: str) -> VortexError:
    """`VE030`: no flow could be read from what was given."""
    return VortexError(
        "VE030",
        f"no flow to serve in {source!r}: {why}",
        "give an exported directory (program.json and knobs.json), a bundle .json, or a library flow's name",
    )


def bad_setting(name: str, value: str, rule: str) -> VortexError:
    """`VE031`: an environment variable of the plug-in outside its range."""
    return VortexError("VE031", f"{name}={value!r}: {rule}", f"set {name} so that {rule}, or unset it")


def page_mismatch(flow_page: int, engine_page: int) -> VortexError:
    """`VE032`: the engine's pages cannot be cut into the flow's."""
    return VortexError(
        "VE032",
        f"the flow selects pages of {flow_page} tokens, the server allocates pages of {engine_page}: "
        "the server's page size must be the flow's or a multiple of it",
        f"start the server with --page-size {flow_page}",
    )


def unsupported(what: str, remedy: str) -> VortexError:
    """`VE033`: the server's configuration asks for something that the plug-in does not do."""
    return VortexError("VE033", f"the vortex attention backend does not support {what}", remedy)


def unsupported_flow(what: str, remedy: str) -> VortexError:
    """`VE034`: the flow asks for something that cannot be done in this engine."""
    return VortexError("VE034", f"this flow cannot be served here: {what}", remedy)


def interface_moved(version: str, found: Sequence[str], supported: Sequence[str]) -> VortexError:
    """`VE035`: the engine is not the one this plug-in was written against."""
    return VortexError(
        "VE035",
        f"SGLang {version} is not as the plug-in expects: {'; '.join(found)}",
        f"install a supported SGLang ({', '.join(supported)}), or a vortex-search that knows this one",
    )


def no_memory(needed: int, free: int, tokens: int) -> VortexError:
    """`VE036`: the page states do not fit beside the KV pool. Sizes in bytes."""
    return VortexError(
        "VE036",
        f"page states of {tokens} tokens need {needed / 2**30:.2f} GiB, {free / 2**30:.2f} GiB are free",
        "start the server with a smaller --mem-fraction-static or --max-total-tokens",
    )


def no_sglang(python: str, why: str) -> VortexError:
    """`VE037`: the interpreter that should run SGLang cannot."""
    return VortexError(
        "VE037",
        f"cannot serve with {python}: {why}",
        "make an environment of its own (docs/serving.md) and name its interpreter in VORTEX_SGLANG_PYTHON",
    )


def engine_died(how: str, log: str) -> VortexError:
    """`VE038`: an engine in a process of its own is gone. `log`: the end of what it said."""
    return VortexError(
        "VE038",
        f"the SGLang engine {how}; the end of its log:\n{log.strip()}",
        "read the log above; a vortex error in it says what to change",
    )
