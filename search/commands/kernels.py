"""The Triton kernels generated for a flow and a model's dimensions: their text, and the hash that names it."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from typing import Any

from vortex_core.ir.flow import Flow


def generated_kernels(flow: Flow, model: str) -> tuple[str, dict[str, Any]]:
    """The text of the module, and what it is for: model, page size, dimensions, SHA-256 of the text.

    Raises:
        VortexError: `VE050` for what the code generator cannot lower; an unknown model.
    """
    from search.commands.explain import dimensions
    from vortex_core.compiler.triton.generate import generate

    geometry = dimensions(model).geometry()
    text = generate(flow.program.canonical(), geometry, flow.knobs.page_size).text
    return text, {
        "model": model,
        "page_size": flow.knobs.page_size,
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "geometry": asdict(geometry),
    }
