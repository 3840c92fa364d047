"""Makes this source tree look installed to SGLang's plug-in discovery, where it is not."""

from __future__ import annotations

import os
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

from vortex_core import __version__

GROUP = "sglang.srt.plugins"
_ROOT = Path(__file__).resolve().parents[2]


def plugin_path(folder: Path) -> dict[str, str]:
    """Environment variables under which a process finds the plug-in and this tree.

    Where the plug-in is not installed, writes the metadata that an installation would have into `folder`.
    """
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    if not any(e.name == "vortex" for e in entry_points(group=GROUP)):
        project = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        info = folder / f"{project['name'].replace('-', '_')}-{__version__}.dist-info"
        info.mkdir(parents=True, exist_ok=True)
        head = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {__version__}\n"
        (info / "METADATA").write_text(head, encoding="utf-8")
        lines = [f"{name} = {target}" for name, target in project["entry-points"][GROUP].items()]
        (info / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines, ""]), encoding="utf-8")
        paths.insert(0, str(folder))
    return {"PYTHONPATH": os.pathsep.join(paths)}
