"""An exported folder as a wheel: `pip install` it beside vortex-search, and `load()` gives the flow."""

from __future__ import annotations

import base64
import hashlib
import re
import zipfile
from pathlib import Path

_INIT = '''\
"""A sparse-attention flow exported by vortex-search. `load()` traces it; FOLDER holds card, kernels and scripts."""

from pathlib import Path

FOLDER = Path(__file__).parent


def load():
    """The flow, traced in the jail and verified."""
    from vortex_core.sandbox.load import trace_file

    return trace_file(FOLDER / "flow.py")
'''


def module_name(name: str) -> str:
    """A Python name for a flow's package."""
    plain = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")[:60] or "flow"
    return f"vortex_flow_{plain}"


def write_wheel(folder: Path, names: list[str], name: str, key: str, summary: str) -> str:
    """Write the wheel of a folder's files into it; returns its file name. The same files give the same bytes.

    Args:
        names: files of the folder that go in.
        name: of the flow.
        key: 16 hex digits of program and knobs; the wheel's local version.
        summary: one line for its metadata.
    """
    module = module_name(name)
    version = f"1.0+{key}"
    info = f"{module}-{version}.dist-info"
    metadata = (
        f"Metadata-Version: 2.1\nName: {module.replace('_', '-')}\nVersion: {version}\nSummary: {summary}\n"
        "License: Apache-2.0\nRequires-Dist: vortex-search\n"
    )
    contents = {f"{module}/{n}": (folder / n).read_bytes() for n in sorted(names)}
    contents[f"{module}/__init__.py"] = _INIT.encode()
    contents[f"{info}/METADATA"] = metadata.encode()
    contents[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: vortex-search\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    record = "".join(f"{n},sha256={_digest(data)},{len(data)}\n" for n, data in contents.items())
    contents[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    wheel = f"{module}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(folder / wheel, "w", zipfile.ZIP_DEFLATED) as file:
        for n, data in contents.items():
            entry = zipfile.ZipInfo(n, (1980, 1, 1, 0, 0, 0))
            entry.external_attr, entry.compress_type = 0o644 << 16, zipfile.ZIP_DEFLATED
            file.writestr(entry, data)
    return wheel


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
