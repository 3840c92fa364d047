"""Model and GPU descriptions: arithmetic against hand-worked numbers, and errors that help."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from vortex_core.errors import VortexError
from vortex_core.specs import ModelSpec, list_gpus, list_models, load_gpu, load_model


def test_gqa_cache_bytes():
    spec = load_model("qwen3-4b")
    # 36 layers, keys and values, 8 heads of 128 channels, 2 bytes
    assert spec.kv_bytes_per_token("bf16") == 36 * 2 * 8 * 128 * 2
    assert spec.kv_bytes_per_token("fp8") * 2 == spec.kv_bytes_per_token("bf16")
    assert spec.group == 4


def test_mla_caches_one_latent_for_all_heads():
    spec = load_model("glm-4.7-flash")
    assert spec.kv_bytes_per_token("bf16") == 47 * (512 + 64) * 2
    assert (spec.kv_heads, spec.group, spec.head_dim, spec.value_dim) == (1, 20, 576, 512)
    geometry = spec.geometry()
    assert geometry.is_mla
    assert (geometry.rope_dim, geometry.value_dim, geometry.group) == (64, 512, 20)
    assert not load_model("llama-3.1-8b").geometry().is_mla


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [  # billions, as the publishers state them
        ("smollm2-135m", 0.135, 0.135),
        ("qwen3-8b", 8.2, 8.2),
        ("llama-3.1-8b", 8.0, 8.0),
        ("glm-4.7-flash", 30, 3.9),
        ("minimax-m2.7", 229, 11),
    ],
)
def test_published_sizes(name: str, total: float, active: float):
    spec = load_model(name)
    assert spec.parameters / 1e9 == pytest.approx(total, rel=0.02)
    assert spec.active_parameters / 1e9 == pytest.approx(active, rel=0.02)


def test_dense_models_read_all_weights_but_an_untied_embedding():
    tied, untied = load_model("qwen3-4b"), load_model("qwen3-8b")
    assert tied.weight_bytes_read_per_step(1) == tied.weight_bytes()
    assert untied.weight_bytes() - untied.weight_bytes_read_per_step(64) == 2 * 151936 * 4096


@given(batch=st.integers(1, 4096))
def test_experts_read_grow_with_the_batch_up_to_all_of_them(batch: int):
    spec = load_model("minimax-m2.7")
    embedding = spec.vocab * spec.hidden
    read = spec.weight_bytes_read_per_step(batch, "fp8")
    assert spec.active_parameters - embedding <= read <= spec.parameters - embedding
    assert read <= spec.weight_bytes_read_per_step(batch + 1, "fp8")


def test_one_token_reads_exactly_the_active_experts():
    spec = load_model("minimax-m2.7")
    assert spec.weight_bytes_read_per_step(1, "fp8") == spec.active_parameters - spec.vocab * spec.hidden


def test_names_ignore_case_and_accept_hub_ids():
    assert load_model("Qwen/Qwen3-0.6B") == load_model("QWEN3-0.6b")
    assert load_gpu("H200").name == "h200"


def test_unknown_names_get_near_matches_and_the_whole_list():
    with pytest.raises(VortexError) as caught:
        load_model("qwen3-4")
    assert caught.value.code == "VM001"
    assert "did you mean qwen3-4b" in caught.value.remedy
    assert all(name in caught.value.remedy for name in list_models())
    with pytest.raises(VortexError) as caught:
        load_gpu("tpu")
    assert caught.value.code == "VM002"
    assert all(name in caught.value.remedy for name in list_gpus())


def test_bandwidth_is_measured_or_says_it_is_not():
    for name in list_gpus():
        gpu = load_gpu(name)
        assert 0.8 * gpu.hbm_bandwidth < gpu.usable_bandwidth < gpu.hbm_bandwidth
        assert gpu.bandwidth_is_measured == (gpu.measured_copy_bandwidth is not None)
    assert load_gpu("h200").usable_bandwidth == 4.28e12
    assert not load_gpu("b200").bandwidth_is_measured
    assert load_gpu("h100").flops("fp8") == pytest.approx(2 * load_gpu("h100").flops("bf16"), rel=1e-3)


def test_kv_capacity_is_what_the_weights_leave():
    h100, model = load_gpu("h100"), load_model("qwen3-4b")
    tokens = h100.kv_capacity_tokens(model)
    used = model.weight_bytes() + tokens * model.kv_bytes_per_token()
    assert used <= h100.hbm_bytes < used + model.kv_bytes_per_token()
    assert h100.kv_capacity_tokens(model, "fp8") >= 2 * tokens
    assert h100.kv_capacity_tokens(load_model("minimax-m2.7")) == 0


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"kv_heads": 5}, "do not divide"),
        ({"dense_first_layers": 1}, "for MoE models"),
        ({"layers": 0}, "greater than 0"),
        ({"lyaers": 3}, "Extra inputs"),
        (
            {"mla": {"q_lora": None, "kv_lora": 512, "qk_nope": 128, "qk_rope": 64, "v_head": 128}},
            "one latent head",
        ),
        ({"moe": {"experts": 4, "active": 5, "shared": 0, "intermediate": 64}}, "5 active experts of 4"),
    ],
)
def test_contradictory_dimensions_are_refused(changes: dict[str, object], complaint: str):
    good = load_model("smollm2-135m").model_dump()
    with pytest.raises(ValidationError, match=complaint):
        ModelSpec.model_validate(good | changes)
