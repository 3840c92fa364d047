"""For the site only: a page for every program of the library, made from its IR; nothing on it is written by hand."""

from __future__ import annotations

from html import escape
from typing import Any

MODEL = "qwen3-8b"
"""Whose dimensions launches and kernels are shown for."""
_LATENT = "glm-4.7-flash"


def program_pages() -> dict[str, str]:
    """Markdown by path: `programs/NAME.md`, and their index."""
    from vortex_core import library

    made, rows = {}, []
    for name in library.names():
        made[f"programs/{name}.md"], first = _page(name)
        rows.append(f"| [{name}]({name}.md) | {first} |")
    made["programs/index.md"] = _INDEX + "\n".join(rows) + "\n"
    return made


_INDEX = """# Programs of the library

Sentences, formulas, pictures, launches and kernels on these pages are generated from each program's IR, as
`vortex-search show` and a run's report generate them. Papers and differences from them: [the library](../library.md).

| program | in words |
|---|---|
"""


def _page(name: str) -> tuple[str, str]:
    """The page of one program, and its last sentence, which says what a decode step reads."""
    from search.report.program import BATCH, GPU, LENGTH, describe
    from vortex_core import library

    flow = library.load(name).flow
    model = MODEL
    page = describe(flow, model) | {"kernels": _kernels(flow, model)}
    if "text" not in page["kernels"]:
        latent = describe(flow, _LATENT) | {"kernels": _kernels(flow, _LATENT)}
        if "text" in latent["kernels"]:
            model, page = _LATENT, latent
    says = [escape(words) for words in page["says"]]
    parts = [
        f"# {name}\n",
        " ".join(says) + "\n",
        "## Formula\n\np page, h query head, t token, d channel, r row.\n",
        *(
            f'<p>{escape(stage)}:</p>\n<div class="formula">{mathml}</div>\n'
            for stage, _, mathml in page["formula"]
        ),
    ]
    if page["picture"]:
        parts.append(f'## Data flow\n\n<div class="dataflow" tabindex="0">{page["picture"]}</div>\n')
    parts.append(f"## Source\n\n```python\n{library.source(name).rstrip()}\n```\n")
    parts.append(
        f"## Simplified\n\nAs the canonical program writes it.\n\n```python\n{page['simple'].rstrip()}\n```\n"
    )
    if page["launches"]:
        parts.append(
            f"## Launches\n\nOf a sparse layer, modelled, never measured: "
            f"{model} on {GPU}, {BATCH} sequences of {LENGTH:,} tokens.\n\n"
            "| launch | does | MiB | MFLOP | us at least |\n|---|---|---:|---:|---:|\n"
            + "\n".join(_launch(launch) for launch in page["launches"])
            + "\n"
        )
    found = page["kernels"]
    if "text" in found:
        about = f"For {model}, pages of {found['page_size']} tokens; SHA-256 `{found['sha256']}`."
        parts.append(f"## Generated kernels\n\n{about}\n\n```python\n{found['text'].rstrip()}\n```\n")
    else:
        parts.append(f"## Generated kernels\n\nNone for {MODEL}: {escape(found['why'])}\n")
    return "\n".join(parts), says[-1].replace("|", "\\|")


def _kernels(flow: Any, model: str) -> dict[str, Any]:
    from search.report.program import kernels_of

    return kernels_of(flow, model)


def _launch(launch: dict[str, Any]) -> str:
    sizes = f"{launch['bytes'] / 2**20:.2f} | {launch['flops'] / 1e6:.1f} | {launch['us']:.2f}"
    return f"| {launch['name']} | {launch['does']} | {sizes} |"
