"""Programs that do not fit a model say so with a code: VF013, VF064, VF065; those that do, run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from tests import sample_flows
from tests.fuzz import selections
from vortex_core.compiler import backends
from vortex_core.compiler.oracle import OracleFlow
from vortex_core.compiler.torch_backend import TorchFlow
from vortex_core.errors import VortexError
from vortex_core.flow.emit import emit
from vortex_core.geometry import Geometry
from vortex_core.ir.program import Program
from vortex_core.sandbox.jail import run
from vortex_core.sandbox.load import trace_file

PLAIN = Geometry(1, 2, 3, 16, 16, 16)
HEAD = sample_flows.HEADER


@pytest.mark.parametrize(
    ("code", "body", "geometry"),
    [
        ("VF013", 'x = q.slice("dim", 0, "D/3")', PLAIN),
        ("VF013", 'x = q.split("dim", part=3)', PLAIN),
        ("VF016", 'x = q.slice("dim", 0, "3*G")', Geometry(1, 2, 8, 16, 16, 16)),
        ("VF064", 'x = q.channels("nope")', PLAIN),
    ],
)
@pytest.mark.parametrize("backend", ["oracle", "torch"])
def test_a_model_without_such_a_shape(code: str, body: str, geometry: Geometry, backend: str) -> None:
    body += "\n        return ops.topk(ops.position() * x.sum(*x.dims))"
    source = f"{HEAD}    def forward_indexer(self, q, cache):\n        {body}"
    traced = run(source, "flow.py")
    with pytest.raises(VortexError) as caught:
        backends.get(backend).compile(traced.original, traced.knobs, geometry)
    assert caught.value.code == code
    if backend == "oracle":
        assert caught.value.location is not None
        assert caught.value.location.line == 5


SEER = """
from vortex_core import Knobs, ops, vFlow
class Seer(vFlow):
    {params}
    def create_cache(self, page):
        return {{"z": page.state(rank=4, dtype="fp32")}}
    def forward_cache(self, page):
        return {{"z": (page.k.mean("token") * ops.param("wk", layer={layers}, kv_head=2, rank=4, dim="D")).sum("dim")}}
    def forward_indexer(self, q, cache):
        z = (q.mean("head") * ops.param("wq", rank=4, dim="D")).sum("dim") + ops.param("bias", kv_head=2)
        return ops.topk((z * cache["z"]).sum("rank"))
"""


def weights(layers: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "wk": rng.normal(size=(layers, 2, 4, 16)).astype(np.float32),
        "wq": rng.normal(size=(4, 16)).astype(np.float32),
        "bias": np.array([0.5, -1.0], np.float32),
    }


def inline(layers: int = 1) -> str:
    return SEER.format(
        params=f"params = { {n: x.tolist() for n, x in weights(layers).items()} }", layers=layers
    )


def test_learned_values_select_as_plain_arithmetic_says() -> None:
    traced = run(inline(), "seer.py")
    d = selections.data(3, steps=1)
    oracle = selections.run_oracle(OracleFlow(traced.original, selections.KNOBS, PLAIN), d)
    w = {n: torch.from_numpy(x).double() for n, x in weights().items()}
    for b, length in enumerate(selections.LENGTHS):
        complete = length // selections.PAGE
        for h in range(2 if complete else 0):
            pages = d.kv.k[h, d.table[b, :complete]]
            z = torch.einsum("prd,d->pr", pages.mean(1)[:, None] * w["wk"][0, h], torch.ones(16).double())
            query = w["wq"] @ d.queries[0][b, 3 * h : 3 * h + 3].mean(0) + w["bias"][h]
            (score,) = oracle[0][1][b].values()
            torch.testing.assert_close(score[h], z.float().double() @ query)
    found = selections.run(TorchFlow(traced.program, selections.KNOBS, PLAIN), d)
    assert not selections.disagreement(traced.original, d, oracle, found, 1e-5)


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_values_beside_the_flow_are_those_in_the_class(tmp_path, kind: str) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "seer.py").write_text(SEER.format(params="", layers=1))
    if kind == "npz":
        np.savez(tmp_path / "seer.npz", **weights())
    else:
        save_file(weights(), tmp_path / "seer.safetensors")
    beside, inside = trace_file(tmp_path / "seer.py"), run(inline(), "seer.py")
    assert beside.ir_hash == inside.ir_hash
    assert Program.from_json(beside.program.to_json()).ir_hash == beside.ir_hash
    assert run(emit(beside.program, beside.knobs, "seer", "x"), "e.py").ir_hash == beside.ir_hash


def test_other_values_are_another_program() -> None:
    assert run(inline(), "a.py").ir_hash != run(inline().replace("0.5", "0.75"), "b.py").ir_hash


def test_values_of_another_model_are_refused() -> None:
    traced = run(inline(layers=2), "seer.py")
    TorchFlow(traced.program, traced.knobs, Geometry(2, 2, 3, 16, 16, 16))
    for geometry in (PLAIN, Geometry(2, 1, 3, 16, 16, 16), Geometry(2, 2, 3, 8, 8, 8)):
        with pytest.raises(VortexError, match="VF065"):
            TorchFlow(traced.program, traced.knobs, geometry)


@pytest.mark.parametrize(
    "params",
    ["3", "{'w': [[1], [1, 2]]}", "{'w': ['a']}", "{'w': []}", "{'w': [1e300]}", "{'w': [1, 2]}", "{'v': [1]}"],
)  # fmt: skip
def test_values_that_are_none(params: str) -> None:
    body = "return ops.topk(ops.position() * ops.param('w', x=3).sum('x'))"
    source = f"{HEAD}    params = {params}\n    def forward_indexer(self, q, cache):\n        {body}"
    with pytest.raises(VortexError, match="VF065"):
        run(source, "flow.py")


def test_an_unreadable_file_of_values(tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "f.py").write_text(SEER.format(params="", layers=1))
    (tmp_path / "f.npz").write_bytes(b"nonsense")
    with pytest.raises(VortexError, match="VF065"):
        trace_file(tmp_path / "f.py")
    np.savez(tmp_path / "f.npz", wk=np.array([object()], dtype=object))
    with pytest.raises(VortexError, match="VF065"):
        trace_file(tmp_path / "f.py")
