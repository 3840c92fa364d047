"""What a GPU was doing when something was timed: clocks, power, temperature, and who else computes on it.

Read through NVML where its Python binding is installed, else from `nvidia-smi`. Nothing depends on it: where neither
answers there is simply nothing to report.
"""

from __future__ import annotations

import shutil
import subprocess
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_SECONDS = 5.0
_FIELDS = {
    "sm_mhz": "clocks.sm",
    "sm_max_mhz": "clocks.max.sm",
    "memory_mhz": "clocks.mem",
    "watts": "power.draw",
    "celsius": "temperature.gpu",
}


def gpu_state(device: torch.device) -> dict[str, Any]:
    """Clocks (MHz), power (W), temperature and the number of other processes that compute on a GPU.

    Empty on a CPU and where the driver's tools do not answer.
    """
    if device.type != "cuda":
        return {}
    import torch

    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    return _from_nvml(uuid) or _from_smi(uuid)


def _from_nvml(uuid: str) -> dict[str, Any]:
    """Empty where the binding or the driver's library is missing, or refuses."""
    if find_spec("pynvml") is None:
        return {}
    pynvml: Any = import_module("pynvml")
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        return {
            "sm_mhz": pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
            "sm_max_mhz": pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM),
            "memory_mhz": pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM),
            "watts": pynvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
            "celsius": pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
            "neighbours": max(0, len(pynvml.nvmlDeviceGetComputeRunningProcesses(handle)) - 1),
        }
    except pynvml.NVMLError:
        return {}


def _from_smi(uuid: str) -> dict[str, Any]:
    if shutil.which("nvidia-smi") is None:
        return {}
    values = _smi("--query-gpu=" + ",".join(_FIELDS.values()), uuid)
    if len(values) != 1:
        return {}
    found: dict[str, Any] = {}
    for name, text in zip(_FIELDS, values[0].split(","), strict=False):
        try:
            found[name] = float(text)
        except ValueError:  # "[N/A]"
            continue
    # This process is one of them; in a container it may carry a number that it does not know as its own.
    return found | {"neighbours": max(0, len(_smi("--query-compute-apps=pid", uuid)) - 1)}


def _smi(query: str, uuid: str) -> list[str]:
    command = ["nvidia-smi", query, "--format=csv,noheader,nounits", "-i", uuid]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else []
