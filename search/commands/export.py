"""Export: a directory that a stranger can read, run and check without the run it came from."""

from __future__ import annotations

import os
from pathlib import Path

from search.campaign.archive import Archive, Entry
from search.commands import checksums
from search.commands.agents_guide import AGENTS
from search.commands.card import ABOUT, make_card, pretty
from search.commands.certificate import dress, of_run
from search.commands.kernels import generated_kernels
from search.config import CampaignConfig
from search.errors import bad_value, folder_in_use, no_such_rank, no_winner
from search.log.files import write_atomic
from search.log.run import Run
from search.log.state import CampaignState
from vortex_core.errors import VortexError
from vortex_core.files import read_json
from vortex_core.ir.flow import Flow
from vortex_core.ir.knobs import Knobs
from vortex_core.ir.program import Program
from vortex_core.sandbox.load import write_flow
from vortex_core.text import visible

_VERIFY = '''\
"""Checks this directory: flow.py still means the recorded program, and measures as recorded.

    python verify.py            trace, hash, parity with the oracle, cost model, accuracy again
    python verify.py --quick    the same without loading the model

Needs vortex-search. Exit status 0: everything agrees; 1: something does not; 2: it could not be checked.
"""

import sys
from pathlib import Path

from search.commands.verify import main

sys.exit(main(Path(__file__).resolve().parent, sys.argv[1:]))
'''


_SERVE = '''\
"""Serves this flow with SGLang.

    python serve.py --model MODEL [options of sglang.launch_server]
    python serve.py --print

Needs an environment with sglang and vortex-search's vortex_core (pip install --no-deps vortex-search).
"""

import sys
from pathlib import Path

from vortex_core.serving.launch import main

sys.exit(main(Path(__file__).resolve().parent, sys.argv[1:]))
'''


_GENERATE = '''\
"""Continues a text with this flow in the embedded engine, beside dense attention.

    python generate.py "The capital of France is" --model MODEL --new-tokens 32

Needs vortex-search and weights that are here (vortex-search models).
"""

import sys
from pathlib import Path

from search.commands.generate import main

sys.exit(main(Path(__file__).resolve().parent, sys.argv[1:]))
'''
_LICENCE = Path(__file__).with_name("licence.txt")


def export(
    run: Run, state: CampaignState, config: CampaignConfig, entry: Entry, out: Path, *, force: bool = False
) -> Path:
    """Write a ranked candidate to `out`; returns it.

    Args:
        force: replace an earlier export in `out`. Nothing that `export` did not write is ever removed, and what was
            changed since is kept beside, as `NAME.kept`.

    Raises:
        VortexError: `VS011`, if `out` holds something else, or an export and `force` is not set.
    """
    candidate = entry.candidate
    certificate = of_run(run.folder, candidate.key)
    _make_room(out, force=force)
    card = make_card(run, state, config, entry)
    program = run.files.get_json(candidate.program)
    flow = Flow(
        candidate.name,
        Program.from_json(program).canonical(),
        Knobs.from_json(candidate.knobs),
        candidate.doc,
    )
    # From the verified program: what is imported is our text, not its author's.
    written = [path.name for path in write_flow(out / "flow.py", flow)]
    texts = {
        "original.txt": run.files.get(candidate.source, ".py"),
        "knobs.json": pretty(candidate.knobs),
        "program.json": pretty(program),
        "card.json": pretty(card),
        "verify.py": _VERIFY,
        "serve.py": _SERVE,
        "AGENTS.md": AGENTS,
        "generate.py": _GENERATE,
        "LICENSE": _LICENCE.read_text(encoding="utf-8"),
        **kernel_files(flow, config.model),
        **dialect_files(flow),
    }
    for name, text in texts.items():
        write_atomic(out / name, text)
    dress(out, [*written, *texts], card, certificate)
    return out


def kernel_files(flow: Flow, model: str) -> dict[str, str]:
    """The generated kernels for a model's dimensions, with the hash of their text; or why there are none."""
    try:
        text, about = generated_kernels(flow, model)
    except VortexError as error:
        return {"kernels/WHY.txt": f"No kernels were generated for {visible(model)}: {error.message}\n"}
    return {"kernels/kernels.py": text, "kernels/kernels.json": pretty(about)}


def dialect_files(flow: Flow) -> dict[str, str]:
    """The flow as a vortex_torch program with its settings, or why that system cannot say it."""
    from vortex_core.dialects.vortex_torch.write import write

    try:
        written = write(flow)
    except VortexError as error:
        return {"vortex_torch/WHY.txt": f"{error}\n"}
    return {"vortex_torch/flow.py": written.source, "vortex_torch/flow.json": pretty(written.settings)}


def _make_room(out: Path, *, force: bool) -> None:
    """Have an empty place for an export; with `force`, the files of an older export go, and nothing else ever.

    Raises:
        VortexError: `VS011`, if something lies there that is not ours to remove; `VS010`, if no folder can be there.
    """
    try:
        if not os.path.lexists(out):
            out.mkdir(parents=True)
            return
        if out.is_symlink() or not out.is_dir():
            raise folder_in_use(str(out), "it is no folder of an export")
        found = {path.name for path in out.iterdir()}
        if found and not force:
            raise folder_in_use(str(out))
        if found and not is_export(out):
            raise folder_in_use(str(out), "it is no export")
        # What would be written through a link is somebody else's.
        for name in ("kernels", "vortex_torch", "README.md", checksums.NAME, *ABOUT):
            place = out / name
            if place.is_symlink() or (
                name in ("kernels", "vortex_torch") and place.exists() and not place.is_dir()
            ):
                raise folder_in_use(str(out), f"{name} there is not the export's")
        checksums.remove(out)
    except OSError as error:
        raise bad_value("--out", str(out), f"a folder that can be written ({error.strerror})") from None


def remove_export(folder: Path) -> None:
    """Remove an export, and its folder if nothing of anybody else's lies in it."""
    checksums.remove(folder)
    if not any(folder.iterdir()):
        folder.rmdir()


def is_export(folder: Path) -> bool:
    """Whether `export` wrote a folder."""
    try:
        card = read_json(folder / "card.json")
    except OSError:
        return False
    return isinstance(card, dict) and "format" in card and "ir_hash" in card


def choose(archive: Archive, run: str, rank: int = 1, *, winner: bool = False) -> Entry:
    """The found program of a rank, or the winner.

    Raises:
        VortexError: `VS007` for a rank that the run does not have, `VS044` without a winner.
    """
    if winner:
        if archive.winner is None:
            over = archive.state.finished is not None
            raise no_winner(
                run, "no program kept the gates on fresh items" if over else "the campaign is not over"
            )
        return archive.winner
    found = archive.ranked(rank)
    if found is None:
        raise no_such_rank(run, rank, sum(1 for entry in archive.entries if entry.rank is not None))
    return found
