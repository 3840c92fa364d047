"""`vortex-search convert`: a program of another system as vFlow source that is the same candidate."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search.errors import bad_value
from search.log.files import write_atomic
from vortex_core.dialects import convert_file
from vortex_core.errors import VortexError
from vortex_core.flow.trace import Traced
from vortex_core.sandbox.load import trace_source


@dataclass(frozen=True)
class Converted:
    """A program that was read, and the vFlow source that was traced back to it.

    Attributes:
        flow: the foreign program; `flow.source` is the equivalent vFlow source.
        file: where it came from.
        written: where the vFlow source was written, if anywhere.
    """

    flow: Traced
    file: Path
    written: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "name": self.flow.name,
            "doc": self.flow.doc,
            "file": str(self.file),
            "ir_hash": self.flow.ir_hash,
            "key": self.flow.key,
            "knobs": self.flow.knobs.to_json(),
            "warnings": list(self.flow.warnings),
            "source": self.flow.source,
            "written": None if self.written is None else str(self.written),
        }


def convert(file: Path, knobs: Path | None = None, out: Path | None = None) -> Converted:
    """Read a foreign program, check that its vFlow source means the same, and write that source.

    Args:
        file: the program.
        knobs: its JSON; by default the `.json` file of the same name beside it, if there is one.
        out: where to write the source; nowhere by default.

    Raises:
        VortexError: `VF000` for a file that cannot be read, `VF08x` or another language error for what is in
            it, `VS010` for an `out` that cannot be written, `VS015` if the source would be another program.
    """
    read = {os.path.realpath(path) for path in (file, knobs) if path is not None}
    if out is not None and os.path.realpath(out) in read:
        raise bad_value("--out", str(out), "another file than the one that is read")
    flow = convert_file(file, knobs)
    check(flow)
    if out is not None:
        try:
            write_atomic(out, flow.source)
        except OSError as error:
            raise bad_value("--out", str(out), f"a file that can be written ({error.strerror})") from None
    return Converted(flow, file, out)


def check(flow: Traced) -> None:
    """Trace `flow.source` in the jail: raises `VS015` unless program and knobs come back the same."""
    again = trace_source(flow.source, f"{flow.name}.py")
    if again.key != flow.key:
        raise VortexError(
            "VS015",
            f"the source written for {flow.name!r} traces to {again.key}, the program itself to {flow.key}",
            "nothing was written; this is a defect of the converter, please report the program",
        )
