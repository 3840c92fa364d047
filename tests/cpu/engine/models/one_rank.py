"""One rank of a tensor-parallel engine: reads a job, writes what it decoded. Started by `test_parallel.py`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM

from vortex_core import library
from vortex_core.engine.engine import Engine
from vortex_core.engine.models.hf_config import spec_from_directory
from vortex_core.engine.models.parallel import Ranks, shard


def main(folder: Path, rank: int, size: int) -> None:
    """Answer every job in `folder/jobs.json`."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    answers = []
    for job in json.loads((folder / "jobs.json").read_text()):
        directory = folder / job["model"]
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        spec = spec_from_directory(directory, name=job["model"])
        shard(model, spec, Ranks(rank, size))
        engine = Engine(model, spec=spec, max_tokens=2048)
        pinned = [engine.prefill(ids) for ids in job["prompts"]]
        answer = {
            "rank": rank,
            "kv_heads": engine.geometry.kv_heads,
            "parameters": sum(p.numel() for p in model.parameters()),
            "decoded": {},
        }
        for flow in job["flows"]:
            if flow == "dense":
                engine.load_flow(None)
            else:
                traced = library.load(flow).with_knobs(budget="96", page_size=16)
                engine.load_flow(traced.program, traced.knobs)
            result = engine.decode(pinned, max_new_tokens=8)
            answer["decoded"][flow] = {
                "tokens": result.tokens,
                "logprobs": result.logprobs,
                "density": result.density,
            }
        engine.check_integrity()
        answers.append(answer)
    (folder / f"answers-{rank}.json").write_text(json.dumps(answers))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
