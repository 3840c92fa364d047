"""SGLang itself on a CPU, with the plug-in: a tiny random model, token for token.

Optional: SGLang needs an environment of its own (docs/serving.md). Name its interpreter:

    VORTEX_SGLANG_PYTHON=/opt/sglang/bin/python pytest tests/e2e/serving
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from vortex_core import library
from vortex_core.errors import VortexError
from vortex_core.ir.flow import Flow
from vortex_core.serving.bundle import write_flow
from vortex_core.serving.client import EngineProcess
from vortex_core.serving.settings import Settings

PYTHON = os.environ.get("VORTEX_SGLANG_PYTHON")
pytestmark = [
    pytest.mark.skipif(PYTHON is None, reason="VORTEX_SGLANG_PYTHON names no environment with SGLang"),
    pytest.mark.timeout(900),
    pytest.mark.slow,
]
NEW = 24
PROMPTS = [random.Random(i).choices(range(3, 128), k=n) for i, n in enumerate((100, 33, 160))]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen3, saved as SGLang and transformers read it."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, vocab_size=128, max_position_embeddings=1024,
        initializer_range=0.2, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("model")
    Qwen3ForCausalLM(config).float().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def variables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What makes SGLang run without a GPU."""
    folder = tmp_path_factory.mktemp("standins")
    shutil.copy(Path(__file__).parent / "standins" / "sitecustomize.py", folder)
    look = "import importlib.util as u, sys; sys.exit(u.find_spec('torchvision') is None)"
    if subprocess.run([str(PYTHON), "-c", look], check=False).returncode:
        info = folder / "torchvision-0.28.0.dist-info"  # transformers asks for its version
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.28.0\n")
        (info / "top_level.txt").write_text("torchvision\n")
    return {
        "SGLANG_USE_CPU_ENGINE": "1",
        "TRITON_INTERPRET": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(folder),
    }


def _options(model: Path, **changes: Any) -> dict[str, Any]:
    return {
        "model_path": str(model), "skip_tokenizer_init": True, "device": "cpu", "dtype": "float32",
        "grammar_backend": "none", "sampling_backend": "pytorch", "disable_cuda_graph": True,
        "max_running_requests": 4, "max_total_tokens": 2048, "page_size": 16, "context_length": 512,
        "log_level": "info", "random_seed": 0, "watchdog_timeout": 1200, "attention_backend": "vortex",
        **changes,
    }  # fmt: skip


def _flow(folder: Path, **knobs: Any) -> Flow:
    flow = library.load("quest").with_knobs(page_size=16, **knobs).flow
    write_flow(flow, folder / "flow.json")
    return flow


def _answers(reference: Any) -> list[list[int]]:
    """Greedy answers of a transformers model."""
    return [
        reference.generate(
            torch.tensor([ids]), max_new_tokens=NEW, do_sample=False, eos_token_id=None, pad_token_id=0
        )[0, len(ids) :].tolist()
        for ids in PROMPTS
    ]


def test_everything_selected_equals_transformers(
    model: Path, variables: dict[str, str], tmp_path: Path
) -> None:
    """Through the sparse path, on a first run and on a cached prefix."""
    from transformers import AutoModelForCausalLM

    flow = _flow(tmp_path, budget="4096")
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    want = _answers(reference)
    settings = Settings(str(tmp_path / "flow.json"))
    with EngineProcess(_options(model), settings, python=PYTHON, variables=variables) as engine:
        first = engine.generate(PROMPTS, NEW)
        again = engine.generate(PROMPTS, NEW)
        status = engine.status
    assert first.tokens == want
    assert again.tokens == want
    assert all(c >= 32 for c in again.cached)
    assert status is not None
    assert (status["ir_hash"], status["density"]) == (flow.ir_hash, 1.0)


def test_the_flow_reads_the_start_that_an_answer_is_given(
    model: Path, variables: dict[str, str], tmp_path: Path
) -> None:
    """Prefill, which is dense, would answer a prompt's last token; given as a start it is decoded."""
    from transformers import AutoModelForCausalLM

    from vortex_core.engine import Engine

    flow = _flow(tmp_path, budget="48")
    starts = [[5], [17], [99]]
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    embedded = Engine(reference, None, max_tokens=2048)
    embedded.load_flow(flow.program, flow.knobs)
    prompts = [embedded.prefill([*ids, *start]) for ids, start in zip(PROMPTS, starts, strict=True)]
    found = embedded.decode(prompts, max_new_tokens=4).tokens
    options = _options(model, forced_starts=True, mem_fraction_static=0.3)
    with EngineProcess(
        options, Settings(str(tmp_path / "flow.json")), python=PYTHON, variables=variables
    ) as engine:
        answers = engine.generate(PROMPTS, 5, starts=starts).tokens
    assert answers == [[*start, *tokens] for start, tokens in zip(starts, found, strict=True)]


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_sparse_flow_equals_the_embedded_engine(
    model: Path, variables: dict[str, str], tmp_path: Path, backend: str
) -> None:
    """The same tokens as the embedded engine, chunked or not, cached or not; `triton` under its interpreter."""
    from transformers import AutoModelForCausalLM

    from vortex_core.engine import Engine

    flow = _flow(tmp_path, budget="48", dense_layers=(1,))
    new = NEW if backend == "torch" else 14  # the interpreter is slow; one prompt completes a page
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():  # SGLang's first token comes from prefill, the embedded engine's from a sparse step
        firsts = [int(reference(torch.tensor([ids])).logits[0, -1].argmax()) for ids in PROMPTS]
    embedded = Engine(reference, None, max_tokens=2048)
    embedded.load_flow(flow.program, flow.knobs)
    prompts = [embedded.prefill([*ids, first]) for ids, first in zip(PROMPTS, firsts, strict=True)]
    found = embedded.decode(prompts, max_new_tokens=new - 1)
    assert found.density < 0.7
    want = [[first, *tokens] for first, tokens in zip(firsts, found.tokens, strict=True)]
    settings = Settings(str(tmp_path / "flow.json"), None, backend)
    options = _options(model, chunked_prefill_size=64)
    with EngineProcess(options, settings, python=PYTHON, variables=variables) as engine:
        first = engine.generate(PROMPTS, new)
        cached = engine.generate(PROMPTS, new)
        engine.flush()
        alone = [engine.generate([ids], new).tokens[0] for ids in PROMPTS]
        status = engine.status
    assert first.tokens == want
    assert cached.tokens == want
    assert alone == want
    assert status is not None
    assert status["sparse_layers"] == 2
    assert 0.2 < status["density"] < 0.9


def test_latent_attention_equals_transformers(variables: dict[str, str], tmp_path: Path) -> None:
    """MLA: everything selected, on the latent pool, on a first run and on a cached prefix."""
    from transformers import Glm4MoeLiteConfig, Glm4MoeLiteForCausalLM

    torch.manual_seed(0)
    config = Glm4MoeLiteConfig(
        hidden_size=64, intermediate_size=128, moe_intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, kv_lora_rank=32, q_lora_rank=48, qk_rope_head_dim=16,
        qk_nope_head_dim=32, v_head_dim=32, vocab_size=128, max_position_embeddings=1024,
        initializer_range=0.2, n_routed_experts=4, num_experts_per_tok=2, first_k_dense_replace=2,
        mlp_layer_types=["dense", "dense"], bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    reference = Glm4MoeLiteForCausalLM(config).float().eval()
    reference.save_pretrained(tmp_path)
    want = _answers(reference)
    path = tmp_path / "config.json"  # fields that SGLang reads and transformers derives
    more = {"moe_layer_freq": 1, "topk_method": "noaux_tc", "scoring_func": "sigmoid"}
    more |= {"num_nextn_predict_layers": 1}
    path.write_text(json.dumps(json.loads(path.read_text()) | more))
    _flow(tmp_path, budget="4096")
    settings = Settings(str(tmp_path / "flow.json"))
    with EngineProcess(_options(tmp_path), settings, python=PYTHON, variables=variables) as engine:
        assert engine.generate(PROMPTS, NEW).tokens == want
        assert engine.generate(PROMPTS, NEW).tokens == want


def test_unscaled_fp8_keys_give_sglangs_own_tokens(
    model: Path, variables: dict[str, str], tmp_path: Path
) -> None:
    """Everything selected from a pool in fp8 without scales, against SGLang's own attention on such a pool."""
    _flow(tmp_path, budget="4096")
    answers = []
    for backend, settings in (("torch_native", None), ("vortex", Settings(str(tmp_path / "flow.json")))):
        options = _options(model, kv_cache_dtype="fp8_e4m3", attention_backend=backend)
        try:
            process = EngineProcess(options, settings, python=PYTHON, variables=variables)
        except VortexError as error:
            if backend == "vortex" or "CPU FP8 KV cache" not in str(error):
                raise
            pytest.skip("this SGLang has fp8 KV on a CPU only with Intel AMX")  # since 0.5.20
        with process as engine:
            answers.append(engine.generate(PROMPTS, NEW).tokens)
            status = engine.status
    assert answers[0] == answers[1]
    assert status is not None
    assert (status["kv_dtype"], status["density"]) == ("float8_e4m3fn", 1.0)


def test_a_server_that_cannot_run_the_flow_does_not_start(
    model: Path, variables: dict[str, str], tmp_path: Path
) -> None:
    _flow(tmp_path)
    settings = Settings(str(tmp_path / "flow.json"))
    with pytest.raises(VortexError) as caught:
        EngineProcess(_options(model, page_size=8), settings, python=PYTHON, variables=variables)
    assert caught.value.code == "VE038"
    assert "VE032: the flow selects pages of 16 tokens, the server allocates pages of 8" in str(caught.value)
