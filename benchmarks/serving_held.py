"""What a benchmark adds to SGLang's processes, as a plug-in of its own: a gate, free prompts, better random weights.

Importing SGLang takes longer than loading a model of random weights. So the processes of all arms start at once,
and each arm's scheduler waits, its imports done, until a file says that the GPU is free.

Decode is what is timed, and its time does not depend on what the cache holds. So a long prompt may be given random
keys and values instead of a prefill that would take minutes; the engine's scheduler, allocator and prefix cache see
nothing unusual. Answers mean nothing then.

SGLang's dummy weights are the same few numbers between -0.001 and 0.001 everywhere, norms too: whatever is attended
barely shows in the answers, and tokens route to few experts. Weights drawn as for training mend both.
"""

from __future__ import annotations

import multiprocessing
import os
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

GATE = "VORTEX_BENCH_GATE"
RANDOM_KV = "VORTEX_BENCH_RANDOM_KV"
NORMAL = "VORTEX_BENCH_NORMAL_WEIGHTS"
DEVIATION = 0.02
LEAST = 1024  # tokens; a shorter prefill is computed
PATIENCE = 900.0  # seconds at the gate
_NAME = "vortex_bench"
_FORWARD = "sglang.srt.model_executor.model_runner.ModelRunner._forward_raw"
_WEIGHTS = "sglang.srt.model_loader.weight_utils.initialize_dummy_weights"


def install(folder: Path, *, gate: Path | None, random_kv: bool, normal: bool) -> Mapping[str, str]:
    """Environment variables under which SGLang loads this plug-in; its metadata goes into `folder`."""
    info = folder / f"{_NAME}-0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {_NAME}\nVersion: 0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(
        f"[sglang.srt.plugins]\n{_NAME} = benchmarks.serving_held:register\n", encoding="utf-8"
    )
    variables = {"PYTHONPATH": str(folder)}
    if gate is not None:
        variables[GATE] = str(gate)
    variables |= {name: "1" for name, wanted in ((RANDOM_KV, random_kv), (NORMAL, normal)) if wanted}
    return variables


def register() -> None:
    """Entry point: called in every process of the engine, in its scheduler before it touches the GPU."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    if os.environ.get(RANDOM_KV):
        HookRegistry.register(_FORWARD, fill_instead, HookType.AROUND)
    if os.environ.get(NORMAL):
        HookRegistry.register(_WEIGHTS, draw_weights, HookType.REPLACE)
    gate = os.environ.get(GATE)
    if gate and multiprocessing.current_process().name != "MainProcess":
        deadline = time.monotonic() + PATIENCE
        while not Path(gate).exists():
            if time.monotonic() > deadline:  # whoever held it is gone
                os._exit(1)
            time.sleep(0.05)


def draw_weights(model: Any, *args: Any, **more: Any) -> None:
    """In place of dummy weights: matrices from N(0, 0.02^2), norms 1, biases 0. The same on every run; ranks of a
    tensor-parallel model draw equal shards."""
    import torch

    for name, weight in model.state_dict().items():
        if not torch.is_floating_point(weight):
            continue
        if weight.dim() < 2:
            weight.fill_(1.0 if "norm" in name else 0.0)
        else:
            generator = torch.Generator(device=weight.device).manual_seed(zlib.crc32(name.encode()))
            weight.normal_(0.0, DEVIATION, generator=generator)


def fill_instead(original: Any, runner: Any, forward_batch: Any, *args: Any, **more: Any) -> Any:
    """In place of the prefill of long prompts: random K and V in their slots, and a fixed next token."""
    news = forward_batch.extend_seq_lens_cpu
    if not forward_batch.forward_mode.is_extend() or news is None or max(map(int, news)) < LEAST:
        return original(runner, forward_batch, *args, **more)
    import torch
    from sglang.srt.layers.logits_processor import LogitsProcessorOutput
    from sglang.srt.model_executor.model_runner import ModelRunnerOutput

    runner.attn_backend.init_forward_metadata(forward_batch)  # the plug-in notes the pages that fill up
    pool, slots = runner.token_to_kv_pool, forward_batch.out_cache_loc.long()
    for layer in range(pool.start_layer, pool.start_layer + pool.layer_num):
        k, v = pool.get_kv_buffer(layer)
        for buffer in (k,) if k.data_ptr() == v.data_ptr() else (k, v):  # a latent row holds both
            rows = torch.randn((len(slots), *buffer.shape[1:]), device=buffer.device, dtype=torch.bfloat16)
            # Indexing is not defined for fp8 storage: the same bytes, seen as integers.
            whole = buffer if buffer.element_size() > 1 else buffer.view(torch.uint8)
            part = rows.to(buffer.dtype)
            whole[slots] = part if buffer.element_size() > 1 else part.view(torch.uint8)
    logits = torch.zeros(len(news), runner.model_config.vocab_size, device=slots.device)
    logits[:, LEAST % logits.shape[1]] = 1.0
    return ModelRunnerOutput(
        logits_output=LogitsProcessorOutput(next_token_logits=logits), can_run_graph=False
    )
