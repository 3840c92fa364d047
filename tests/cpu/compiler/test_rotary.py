"""`ops.rotary()`: one program, and in each model that model's frequencies."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from evaluators.parity import compare
from vortex_core.compiler.rotary import NAME, with_rotary
from vortex_core.engine.models.hf_config import spec_from_hf_config
from vortex_core.errors import VortexError
from vortex_core.flow import eager, ops, vFlow
from vortex_core.flow.emit import emit
from vortex_core.geometry import Geometry
from vortex_core.ir.knobs import Knobs
from vortex_core.sandbox.jail import run
from vortex_core.sandbox.load import trace_source
from vortex_core.specs import list_models, load_model

SOURCE = '''
import math
from vortex_core import Knobs, ops, register, vFlow

@register("slow")
class Slow(vFlow):
    """Channels of more than 64 tokens a turn by token, the others by their mean, faded by how fast they turn."""

    knobs = Knobs(page_size=8, budget="40")

    def create_cache(self, page):
        rows = {"row": page.size, "dim": page.head_dim}
        return {"slow": page.state(**rows, dtype="int4"), "mean": page.state(dim=page.head_dim)}

    def forward_cache(self, page):
        slow = ops.rotary() < 2 * math.pi / 64
        k = page.k.rename(token="row")
        return {"slow": ops.where(slow, k, 0.0), "mean": k.mean("row") * (-4 * ops.rotary()).exp()}

    def forward_indexer(self, q, cache):
        fast = ops.where(ops.rotary() >= 2 * math.pi / 64, q, 0.0)
        score = (q * cache["slow"]).sum("dim").max("row") + (fast * cache["mean"]).sum("dim")
        return ops.topk(score.max("head"))
'''
SHAPES = {
    "all": Geometry(2, 2, 3, 16, 16, 16, tuple(1e4 ** (-2 * i / 16) for i in range(8))),
    "in part": Geometry(1, 2, 2, 16, 16, 16, tuple(5e6 ** (-2 * i / 8) for i in range(4))),
    "latent": Geometry(1, 1, 4, 24, 8, 16, tuple(1e6 ** (-2 * i / 8) for i in range(4))),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_torch_backend_selects_what_the_oracle_does(shape: str) -> None:
    traced = run(SOURCE, "slow.py")
    found = compare(
        traced.program, traced.knobs, SHAPES[shape], backend="torch", pages=(0.5, 3, 9.5), seeds=(0, 1),
        tie_tolerance=1e-4,
    )  # fmt: skip
    assert found.holds, found


def test_frequencies_stand_where_the_channels_do() -> None:
    partial, latent = SHAPES["in part"].frequencies, SHAPES["latent"].frequencies
    assert partial[:4] == partial[4:8] == list(SHAPES["in part"].rotary) and set(partial[8:]) == {0.0}
    assert latent[16:20] == latent[20:] == list(SHAPES["latent"].rotary) and set(latent[:16]) == {0.0}


class Frequencies(vFlow):
    """Eager: what `ops.rotary()` is."""

    def create_cache(self, page):  # type: ignore[no-untyped-def]  # as authors write
        return {"turn": page.state(dim=page.head_dim, dtype="fp32")}

    def forward_cache(self, page):  # type: ignore[no-untyped-def]
        return {"turn": ops.rotary()}

    def forward_indexer(self, q, cache):  # type: ignore[no-untyped-def]
        return ops.topk(cache["turn"].sum("dim"))


def test_states_and_queries_see_the_models_own() -> None:
    x, turned = torch.randn(8, 16), SHAPES["all"].rotary
    found = eager.run(Frequencies, x, x, torch.randn(2, 16), knobs=Knobs(page_size=8), rotary=turned)
    assert found.states["turn"][0].tolist() == pytest.approx([*turned, *turned])
    with pytest.raises(VortexError) as unknown:
        eager.run(Frequencies, x, x, torch.randn(2, 16), knobs=Knobs(page_size=8))
    assert unknown.value.code == "VF066"


def test_the_program_knows_no_model() -> None:
    traced = trace_source(SOURCE, "slow.py")
    again = trace_source(emit(traced.program, traced.knobs, "slow", "again"), "again.py")
    assert again.ir_hash == traced.ir_hash
    hashes = {with_rotary(traced.program, g).ir_hash for g in SHAPES.values()}
    assert len(hashes) == 3 and traced.ir_hash not in hashes  # bound, it is the model's
    assert all(p.name == NAME for p in with_rotary(traced.program, SHAPES["all"]).params)


def test_unknown_frequencies_are_refused_with_the_line() -> None:
    traced = trace_source(SOURCE, "slow.py")
    with pytest.raises(VortexError) as refused:
        with_rotary(traced.original, replace(SHAPES["all"], rotary=()))
    assert refused.value.code == "VF066" and "ops.rotary()" in str(refused.value.location)


@pytest.mark.parametrize("name", [n for n in list_models() if n != "smollm2-135m-mla"])
def test_described_models_know_theirs(name: str) -> None:
    spec = load_model(name)
    found = spec.geometry()
    assert found.rotary[0] == 1.0 and len(found.frequencies) == found.head_dim
    assert 2 * len(found.rotary) == (64 if name == "minimax-m2.7" else found.rope_dim)
    slowest = 2 * math.pi / found.rotary[-1]
    assert slowest < 2 * math.pi * spec.rope_theta < 2 * slowest * spec.rope_theta


def test_keys_of_several_heads_in_one_row_have_none() -> None:
    assert load_model("smollm2-135m-mla").geometry().rotary == ()


LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 1e4},
        {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
        LLAMA3,
        {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 512},
        {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
    ],
    ids=lambda rope: str(rope["rope_type"]),
)
def test_frequencies_are_those_that_transformers_rotates_by(rope: dict[str, float | str]) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(
        hidden_size=64, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=1, intermediate_size=64,
        vocab_size=64, max_position_embeddings=2048, rope_parameters=rope,
    )  # fmt: skip
    found = spec_from_hf_config(config, name="x").geometry().rotary
    want = [] if rope["rope_type"] == "dynamic" else LlamaRotaryEmbedding(config).inv_freq.tolist()
    assert list(found) == pytest.approx(want)
