"""What a benchmark needs and a machine may lack: said in one line, with an exit status of its own."""

from __future__ import annotations

import argparse
import os
from importlib.util import find_spec

LACKING = 77  # neither run nor failed; argparse's own 2 is a mistake on the command line


def gpus(parser: argparse.ArgumentParser, count: int = 1) -> None:
    """End here unless there are so many CUDA GPUs."""
    import torch

    found = torch.cuda.device_count()
    if found < count:
        wanted = "a CUDA GPU" if count == 1 else f"{count} CUDA GPUs"
        parser.exit(LACKING, f"{parser.prog} needs {wanted}, {found or 'none'} here\n")


def sglang(parser: argparse.ArgumentParser) -> None:
    """End here unless SGLang is installed, or `$VORTEX_SGLANG_PYTHON` names an interpreter that has it."""
    if not os.environ.get("VORTEX_SGLANG_PYTHON") and find_spec("sglang") is None:
        parser.exit(LACKING, f"{parser.prog} needs SGLang in VORTEX_SGLANG_PYTHON (docs/serving.md)\n")
