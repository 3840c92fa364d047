"""Loading: the checkpoint's own numbers and dtype, and a clear refusal of what cannot be read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vortex_core.engine.models import weights
from vortex_core.engine.models.hf_config import spec_from_directory, spec_from_hf_config
from vortex_core.engine.models.loading import load_random, load_weights
from vortex_core.engine.models.parallel import join_ranks
from vortex_core.engine.models.status import model_status
from vortex_core.engine.models.weights import ModelPath
from vortex_core.errors import VortexError

Make = Callable[..., Any]


def test_weights_come_as_they_were_saved(tiny: Make, tmp_path: Path) -> None:
    saved = tiny("glm4_moe_lite").to(torch.bfloat16)
    saved.save_pretrained(tmp_path)
    found = ModelPath(spec_from_directory(tmp_path, name="m"), tmp_path)
    for dtype in (None, torch.float32):
        loaded = load_weights(found, dtype=dtype)
        assert loaded.dtype == (dtype or torch.bfloat16)
        for name, tensor in saved.state_dict().items():
            assert torch.equal(loaded.state_dict()[name].float(), tensor.float()), name


def test_fp8_weights_need_the_package_that_reads_them(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny("minimax_m2").save_pretrained(tmp_path)
    spec = spec_from_directory(tmp_path, name="m").model_copy(update={"dtype": "fp8"})
    monkeypatch.setattr(weights, "find_spec", lambda name: None)
    with pytest.raises(VortexError, match="accelerate") as caught:
        load_weights(ModelPath(spec, tmp_path))
    assert (caught.value.code, caught.value.remedy) == ("VE023", "pip install accelerate")
    missing = model_status("minimax-m2.7").missing
    assert any("accelerate" in reason for reason in missing)
    monkeypatch.setattr(weights, "find_spec", lambda name: object())
    assert not any("accelerate" in reason for reason in model_status("minimax-m2.7").missing)


def test_an_ordinary_process_is_no_rank(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert join_ranks("cpu") is None
    spec = spec_from_hf_config(tiny("llama").config, name="llama")
    model, named = load_random(spec, dtype=torch.float32)
    assert "throughput only" in named.name
    assert sum(p.numel() for p in model.parameters()) == spec.parameters
