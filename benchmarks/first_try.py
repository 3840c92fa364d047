"""How many programs of an author who saw only the prompt are legal: `python -m benchmarks.first_try --help`.

`prompt` prints exactly what a model is sent, system and user, as the first ask of a campaign; give it to an author,
keep the programs in a folder, then `score` them: `NAME.py` is a first try, `NAME.repair.py` beside it what the author
made of the error, which `errors` lays there as `NAME.error.json`. Replies as they came (`NAME.md`) count too: the
program is taken out of them as it is out of a model's answer.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from agents.base import ProposalRequest
from agents.edits import edited
from agents.prompting import system_prompt, user_prompt
from agents.reply import extract
from search.campaign.conditions import language, setting
from search.campaign.feedback import objective_in_words, screen_in_words
from search.campaign.session import plan_of
from search.config import load_campaign
from search.log import events as ev
from search.log.state import CampaignState
from search.log.store import Record
from vortex_core.errors import VortexError
from vortex_core.sandbox.jail import run
from vortex_core.specs import load_model

_REPAIR = ".repair"
_MENDINGS = 3


def prompt(seed: int, campaign: str) -> str:
    """The system prompt, and the first ask for a new program in a campaign, before anything was measured."""
    config, state = load_campaign(campaign), CampaignState()
    plan = plan_of(config).model_dump(mode="json")
    state.apply(Record(1, 0.0, ev.CampaignStarted(campaign, {}, plan, {}, {})))
    request = ProposalRequest(
        kind="seed",
        seed=seed,
        model=load_model(config.model).model_dump(mode="json"),
        objective=objective_in_words(config.objective) + screen_in_words(config.screen),
        setting=setting(state, config),
        knobs=config.knobs,
        number=1,
    )
    return f"<!-- system -->\n\n{system_prompt(language())}\n\n<!-- user -->\n\n{user_prompt(request)}"


@dataclass
class Tries:
    """What became of the programs of one folder.

    Attributes:
        programs: first tries.
        legal: of them, as written.
        mended: of the others, legal by the replacements that their errors name, no author asked.
        repaired: of the others, legal after one repair of their author's, or mended.
        codes: first errors of the others.
        lines: a line each.
    """

    programs: int = 0
    legal: int = 0
    mended: int = 0
    repaired: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    lines: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        by_code = ", ".join(f"{code} {n}x" for code, n in sorted(self.codes.items()))
        after = (
            f"; {self.mended} more by the replacements in the errors, "
            f"{self.legal + self.repaired} of {self.programs} after one repair"
        )
        head = f"{self.legal} of {self.programs} legal; {by_code or 'nothing refused'}"
        return "\n".join([head + (after if self.codes else ""), *self.lines])


def program_of(path: Path, before: str = "") -> str:
    """A program's source: a file of Python as it is; of a reply its program, or its edits of `before` made."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return text
    reply = extract(text)
    if reply is not None:
        return reply.source
    return edited(text, before) or ""


def refused(source: str) -> VortexError | None:
    """The error of a program, None where it is legal."""
    try:
        run(source, "flow.py")
    except VortexError as error:
        return error
    return None


def mended(source: str, error: VortexError) -> bool:
    """Whether the replacements that errors name, one after the other, make a program legal."""
    for _ in range(_MENDINGS):
        if error.replacement is None:
            return False
        source = error.replacement.apply(source)
        again = refused(source)
        if again is None:
            return True
        error = again
    return False


def score(folder: Path, *, write_errors: bool = False) -> Tries:
    """Trace all first tries of a folder, and the repairs beside them.

    Args:
        write_errors: lay each first error beside its program, as an author is told it.
    """
    found = Tries()
    paths = [p for p in sorted(folder.iterdir()) if p.suffix in (".py", ".md") and _REPAIR not in p.name]
    for path in paths:
        found.programs += 1
        source = program_of(path)
        error = refused(source)
        if error is None:
            found.legal += 1
            continue
        found.codes[error.code] += 1
        by_itself = mended(source, error)
        repairs = [p for p in (folder / f"{path.stem}{_REPAIR}{end}" for end in (".py", ".md")) if p.exists()]
        again = refused(program_of(repairs[0], source)) if repairs else error
        found.mended += by_itself
        found.repaired += by_itself or again is None
        said = "mended by its replacement" if by_itself else "repaired" if again is None else "not legal yet"
        if repairs and again is not None and not by_itself:
            said = f"repair refused: {again.code} {again.message.splitlines()[0]}"
        found.lines.append(f"  {path.stem}: {error.code} {error.message.splitlines()[0]} ({said})")
        if write_errors:
            (folder / f"{path.stem}.error.json").write_text(json.dumps(error.to_json(), indent=1) + "\n")
    return found


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("prompt", "score", "errors"))
    parser.add_argument("folder", nargs="*", type=Path, help="of programs, for score and errors")
    parser.add_argument("--seed", type=int, default=0, help="of the prompt's direction (%(default)s)")
    parser.add_argument("--campaign", default="default", help="whose first ask it is (%(default)s)")
    given = parser.parse_args()
    if given.what == "prompt":
        sys.stdout.write(prompt(given.seed, given.campaign))
    for folder in given.folder:
        sys.stdout.write(f"{folder}: {score(folder, write_errors=given.what == 'errors')}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
