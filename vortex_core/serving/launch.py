"""The command line that serves a flow with SGLang, and the program behind an exported directory's `serve.py`."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vortex_core.errors import VortexError
from vortex_core.files import read_json
from vortex_core.ir.flow import Flow
from vortex_core.serving.bundle import load_flow
from vortex_core.serving.errors import bad_bundle, no_sglang, page_mismatch
from vortex_core.serving.plan import check_servable
from vortex_core.serving.settings import Settings

PYTHON = "VORTEX_SGLANG_PYTHON"
_LOOK = """\
import importlib.metadata as m, json
def version(name):
    try: return m.version(name)
    except m.PackageNotFoundError: return None
print(json.dumps({"sglang": version("sglang"), "plugin": any(
    e.name == "vortex" for e in m.entry_points(group="sglang.srt.plugins"))}))
"""


@dataclass(frozen=True)
class Launch:
    """A server to start.

    Attributes:
        arguments: interpreter, module and options.
        variables: environment variables to add.
    """

    arguments: tuple[str, ...]
    variables: dict[str, str]

    @property
    def shell(self) -> str:
        """The same as one line of shell."""
        words = [f"{name}={shlex.quote(value)}" for name, value in self.variables.items()]
        return " ".join([*words, *(shlex.quote(a) for a in self.arguments)])

    def run(self) -> int:
        """Start the server and wait for its end; Ctrl-C goes to the server. Returns its exit status."""
        with subprocess.Popen(self.arguments, env={**os.environ, **self.variables}) as server:
            while True:
                try:
                    return server.wait()
                except KeyboardInterrupt:  # the server got it too, and ends in its own way
                    continue


def launch_command(
    bundle: Flow, settings: Settings, model: str, options: Sequence[str] = (), python: str | None = None
) -> Launch:
    """SGLang's own launcher with what the flow needs, and the user's options as they are.

    Args:
        settings: its `flow` must name the same flow as `bundle`, for the server to read.
        model: directory or hub id.
        options: SGLang options; a page size or KV dtype given here is kept.
        python: interpreter of SGLang's environment; None: `$VORTEX_SGLANG_PYTHON`, else this one.

    Raises:
        VortexError: `VE032` if the page size in `options` does not fit the flow, `VE034` for a flow that no
            server can run.
    """
    check_servable(bundle.program, bundle.knobs)  # refuses here what the server would refuse
    given = dict(_pairs(options))
    needed = ["--model-path", model, "--attention-backend", "vortex"]
    page = bundle.knobs.page_size
    if "--page-size" not in given:
        needed += ["--page-size", str(page)]
    elif given["--page-size"].isdigit() and int(given["--page-size"]) % page:
        raise page_mismatch(page, int(given["--page-size"]))
    if bundle.knobs.kv_dtype.startswith("fp8") and "--kv-cache-dtype" not in given:
        needed += ["--kv-cache-dtype", bundle.knobs.kv_dtype]
    if bundle.program.is_request_local and "--disable-radix-cache" not in given:
        needed.append("--disable-radix-cache")
    arguments = (interpreter(python), "-m", "sglang.launch_server", *needed, *options)
    return Launch(arguments, settings.to_environment())


def _pairs(options: Sequence[str]) -> list[tuple[str, str]]:
    """Options by name, `--name value` or `--name=value`."""
    found = []
    for at, word in enumerate(options):
        name, equals, value = word.partition("=")
        following = options[at + 1] if at + 1 < len(options) else ""
        found.append((name, value if equals else following))
    return found


def interpreter(python: str | None = None) -> str:
    """The Python that has SGLang: as given, as set, else this one."""
    return python or os.environ.get(PYTHON) or sys.executable


def check_environment(python: str) -> str:
    """SGLang's version in an interpreter's environment.

    Raises:
        VortexError: `VE037` if SGLang or the plug-in is not installed there.
    """
    try:
        found = subprocess.run([python, "-c", _LOOK], capture_output=True, text=True, timeout=60, check=True)
        facts = json.loads(found.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise no_sglang(python, f"it does not run: {error}") from error
    if facts["sglang"] is None:
        raise no_sglang(python, "sglang is not installed there")
    if not facts["plugin"]:
        raise no_sglang(python, "vortex-search is not installed there")
    return str(facts["sglang"])


def _recorded_model(folder: Path) -> str:
    """The model an export's card names. Raises `VE030` where none does."""
    try:
        card = read_json(folder / "card.json")
    except OSError as error:
        raise bad_bundle(str(folder), f"card.json: {error.strerror}") from error
    model = card.get("model_source") if isinstance(card, dict) else None
    if not isinstance(model, str) or not model or model.startswith("-"):
        raise bad_bundle(str(folder), "card.json names no model; give --model")
    return model


def main(folder: Path, arguments: Sequence[str]) -> int:
    """`serve.py` of an exported directory. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="serve.py", description="Serve this flow with SGLang. Other options go to sglang.launch_server."
    )
    parser.add_argument("--model", help="model directory or hub id (default: the one it was found on)")
    parser.add_argument("--prefill", help="SGLang attention backend that prefills (default: SGLang's choice)")
    parser.add_argument("--print", action="store_true", help="print the command and exit")
    known, options = parser.parse_known_args(arguments)
    try:
        bundle = load_flow(str(folder))
        model = known.model or _recorded_model(folder)
        launch = launch_command(bundle, Settings(str(folder), known.prefill), model, options)
        print(launch.shell, flush=True)
        if known.print:
            return 0
        check_environment(launch.arguments[0])
        return launch.run()
    except VortexError as error:
        print(error, file=sys.stderr)
        return 2
