"""The command that makes a promise of a flow: certify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from search.cli.console import Json, emit, err, out


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(certify)


def certify(
    target: Annotated[
        str, typer.Argument(help="An exported folder, a run, a library flow, or the path of a .py file.")
    ],
    items: Annotated[Path, typer.Option(help="Your own items: a file of JSON lines.")],
    prompt: Annotated[
        str, typer.Option(help="Prompt made of a row; {name} is the row's value.")
    ] = "{prompt}",
    answer: Annotated[str, typer.Option(help="What is right, likewise.")] = "{answer}",
    metric: Annotated[
        str, typer.Option(help="number, exact, contains, last_number, boxed or letter.")
    ] = "contains",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens generated at most.")] = 64,
    confidence: Annotated[float, typer.Option(help="Probability of the promise.")] = 0.9,
    rank: Annotated[int, typer.Option(min=1, help="Of a run: rank among the programs found.")] = 1,
    winner: Annotated[bool, typer.Option("--winner", help="Of a run: the winner of its finals.")] = False,
    model: Annotated[str | None, typer.Option(help="Model; a run or an export knows its own.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    as_json: Json = False,
) -> None:
    """Bound what a flow loses on your own items, whatever their distribution.

    Every item is answered by dense attention and by the flow. The bound is exact for any model, flow and items, as long
    as what you ask later is drawn as these were. An exported folder keeps it as certificate.json, and its card, README,
    wheel and checksums hold it; a run keeps it for `export` to carry.

    Example:

        vortex-search certify winner --items mine.jsonl --prompt "{question}" --answer "{final}" --metric last_number
    """
    from search.commands.certify import certify_items

    found = certify_items(
        target,
        items,
        rank=rank,
        winner=winner,
        model=model,
        prompt=prompt,
        answer=answer,
        metric=metric,
        max_new_tokens=max_new_tokens,
        confidence=confidence,
        device=device,
        on_batch=lambda n: err.print(f"{n} items answered"),
    )
    if as_json:
        emit(found)
    else:
        out.print(found["words"], markup=False, soft_wrap=True)
        if found["kept"]:
            out.print(f"kept in {found['kept']}", markup=False, soft_wrap=True)
