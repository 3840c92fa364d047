"""How many programs of an author who saw only the prompt are legal: `python -m benchmarks.first_try --help`.

`prompt` prints exactly what a model is sent; give it to an author, keep the programs in a folder, then `score` them.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from agents.base import ProposalRequest
from agents.prompting import system_prompt, user_prompt
from vortex_core.errors import VortexError
from vortex_core.flow.reference import compact
from vortex_core.sandbox.jail import run


def prompt(seed: int) -> str:
    """The system prompt and one request for a new program."""
    request = ProposalRequest(kind="seed", seed=seed)
    return f"{system_prompt(compact())}\n\n--- request {seed} ---\n{user_prompt(request)}"


def score(folder: Path) -> str:
    """Legal programs of all in `folder`, and the codes of the others."""
    codes: Counter[str] = Counter()
    lines = []
    paths = sorted(folder.glob("*.py"))
    for path in paths:
        try:
            run(path.read_text(encoding="utf-8"), "flow.py")
        except VortexError as error:
            codes[error.code] += 1
            mended = " (its replacement is given)" if error.replacement else ""
            lines.append(f"  {path.stem}: {error.code} {error.message.splitlines()[0]}{mended}")
    legal = len(paths) - codes.total()
    by_code = ", ".join(f"{code} {n}x" for code, n in codes.most_common())
    return "\n".join([f"{legal} of {len(paths)} legal; {by_code or 'nothing refused'}", *lines])


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("prompt", "score"))
    parser.add_argument("folder", nargs="*", type=Path, help="of programs, for score")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.what == "prompt":
        sys.stdout.write(prompt(given.seed))
    for folder in given.folder:
        sys.stdout.write(f"{folder}: {score(folder)}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
