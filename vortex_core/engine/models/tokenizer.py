"""A model's tokenizer, loaded from its directory by transformers' own code only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vortex_core.errors import VortexError
from vortex_core.text import visible


def load_tokenizer(directory: Path) -> Any:
    """The tokenizer in a model directory. Code that lies there is never run and nobody is asked to allow it.

    Raises:
        VortexError: `VM006`, if there is none that transformers can read.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # transformers and tokenizers raise whatever a broken file leads them to
        why = visible(str(error).strip().split("\n")[0], 200) or type(error).__name__
        raise VortexError(
            "VM006",
            f"{directory}: its tokenizer cannot be read ({why})",
            "Give a complete directory with tokenizer.json; code of a model's own is not run.",
        ) from error
