"""Every error code of `vortex_core` outside the language: what it means, whose fault it is, whether to try again.

The codes of the language (`VF`) are in `vortex_core.ir.mistakes`, with their messages.
"""

from __future__ import annotations

from vortex_core.errors import ErrorCode, Fault, declare


def _declare(
    code: str, title: str, rule: str, fault: Fault, home: str, *, retryable: bool = False
) -> ErrorCode:
    return declare(code, title, rule, fault, retryable=retryable, home=f"vortex_core/{home}")


# ---- VF: the library of flows
UNKNOWN_FLOW = _declare(
    "VF070", "no such flow", "a flow is named by the library or given as a file", "user", "library"
)

# ---- VX: extension points
_declare(
    "VX001",
    "plug-in that cannot be imported",
    "an entry point names what can be imported",
    "user",
    "registry.py",
)
_declare("VX002", "name given twice", "one distribution gives a name", "user", "registry.py")

# ---- VM: models and weights
UNKNOWN_MODEL = _declare(
    "VM001",
    "no such model",
    "a model is named by configs/models, or given as a directory or hub id",
    "user",
    "specs.py",
)
_declare("VM002", "no such GPU", "a GPU is named by configs/gpus", "user", "specs.py")
_declare("VM003", "bad specification file", "files of configs validate", "user", "specs.py")
_declare(
    "VM004",
    "weights not on this machine",
    "a model's weights are fetched before it is loaded",
    "user",
    "engine/models",
)
_declare(
    "VM005",
    "the hub does not give the model",
    "the hub has the model and gives it to this account",
    "user",
    "engine/models",
)
_declare(
    "VM006",
    "incomplete model directory",
    "a model directory has config.json and *.safetensors",
    "user",
    "engine/models",
)
_declare(
    "VM007",
    "model that cannot be described",
    "a model is decoder-only with full attention",
    "user",
    "engine/models",
)
_declare("VM008", "too little memory for the weights", "the weights fit the device", "user", "engine/models")
_declare(
    "VM009",
    "failed download",
    "the package index gives the file",
    "infrastructure",
    "engine/models",
    retryable=True,
)
_declare(
    "VM010",
    "damaged download",
    "a downloaded file has the recorded digest",
    "infrastructure",
    "engine/models",
)

# ---- VK: kernels
_declare(
    "VK001",
    "bad kernel argument",
    "arguments of a kernel have the documented shapes and types",
    "infrastructure",
    "kernels",
)
_declare("VK002", "kernel that does not compile", "a kernel compiles for the target", "candidate", "kernels")
_declare(
    "VK003",
    "no offline compiler here",
    "Triton's NVIDIA tools are installed and kernels are not interpreted",
    "infrastructure",
    "kernels",
)

# ---- VE0: backends
_declare("VE001", "no such backend", "a backend is named by the registry", "user", "compiler")
_declare(
    "VE050",
    "program that a backend cannot lower",
    "every operator of the program has a lowering in the backend",
    "candidate",
    "compiler",
)

# ---- VE01: the engine
_declare("VE010", "too few tokens of KV cache", "a request fits the pool of an idle engine", "user", "engine")
_declare(
    "VE011",
    "bad prompt",
    "a prompt is token ids of the vocabulary, neither empty nor too long",
    "user",
    "engine",
)
_declare(
    "VE012",
    "unsupported model",
    "a model is decoder-only and its attention goes through the engine's hook",
    "user",
    "engine",
)
_declare(
    "VE013",
    "kv_dtype that this engine does not hold",
    "kv_dtype is auto or what the pool keeps",
    "candidate",
    "engine",
)
_declare("VE014", "bad sampling parameter", "sampling parameters are in their ranges", "user", "engine")
_declare("VE015", "released prompt", "a prompt is used before its last release", "user", "engine")
_declare(
    "VE016",
    "arguments that contradict each other",
    "calls of the engine follow its documentation",
    "user",
    "engine",
)
_declare(
    "VE017",
    "decode step that no CUDA graph can hold",
    "a decode step can be captured",
    "infrastructure",
    "engine",
)
_declare("VE018", "backend on the wrong device", "the backend runs on the engine's device", "user", "engine")
_declare(
    "VE019",
    "page states that do not fit",
    "a flow's page states fit beside weights and KV",
    "candidate",
    "engine",
)
_declare("VE020", "heads that cannot be divided", "the heads divide over the ranks", "user", "engine/models")
_declare(
    "VE021",
    "model that cannot be divided",
    "the parts of the model divide over the ranks",
    "user",
    "engine/models",
)
_declare(
    "VE022",
    "selection across ranks",
    "a flow selects within the kv heads of one rank",
    "candidate",
    "engine/models",
)
_declare(
    "VE023",
    "package missing for these weights",
    "what reads the weights is installed",
    "user",
    "engine/models",
)
_declare(
    "VE025",
    "dense parity lost",
    "a flow that selects everything equals dense attention",
    "infrastructure",
    "engine",
)

# ---- VE05: at the edge of the device, where exceptions of Triton, torch and CUDA become ours
_declare(
    "VE051",
    "kernel that wants more than the GPU has",
    "shared memory, registers and tensor memory of a kernel fit one block of the GPU",
    "candidate",
    "device_errors.py",
)
_declare(
    "VE052",
    "kernel that the compiler refuses",
    "the kernels of a program compile on the device",
    "candidate",
    "device_errors.py",
)
FLOW_EXHAUSTS_MEMORY = _declare(
    "VE053",
    "flow that exhausts memory",
    "a flow's states and scratch fit beside weights and KV",
    "candidate",
    "device_errors.py",
)
_declare(
    "VE054",
    "engine that does not fit the GPU",
    "weights, KV pool and workspace fit the GPU's free memory",
    "infrastructure",
    "device_errors.py",
)
_declare(
    "VE056",
    "kernel that spills too much",
    "what a kernel's registers do not hold takes at most 16 KiB of memory a thread",
    "candidate",
    "compiler/triton/limits.py",
)
_declare(
    "VE055",
    "device failure",
    "CUDA runs what it is given; after this a process cannot use its GPU any more",
    "infrastructure",
    "device_errors.py",
    retryable=True,
)

# ---- VE03: serving
_declare(
    "VE030",
    "nothing to serve",
    "a flow is an exported directory, a bundle or a library flow",
    "user",
    "serving",
)
_declare(
    "VE031",
    "bad setting of the plug-in",
    "environment variables of the plug-in are in their ranges",
    "user",
    "serving",
)
_declare(
    "VE032",
    "page sizes that do not fit",
    "the server's page is the flow's or a multiple of it",
    "user",
    "serving",
)
_declare(
    "VE033",
    "unsupported server configuration",
    "the server asks for what the plug-in does",
    "user",
    "serving",
)
_declare(
    "VE034", "flow that cannot be served", "the flow asks for what the server can do", "candidate", "serving"
)
_declare(
    "VE035", "unknown SGLang", "SGLang has the interface the plug-in was written against", "user", "serving"
)
_declare(
    "VE036",
    "page states that do not fit a server",
    "page states fit beside the server's KV pool",
    "candidate",
    "serving",
)
_declare("VE037", "no SGLang", "an interpreter with SGLang is named", "user", "serving")
_declare(
    "VE038",
    "serving engine died",
    "the engine's process lives until it is stopped",
    "infrastructure",
    "serving",
    retryable=True,
)

# ---- VE04: tuning
_declare(
    "VE040",
    "nothing to tune",
    "tuning needs a GPU and a flow that leaves pages out",
    "user",
    "compiler/triton",
)
