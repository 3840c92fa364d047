"""Functions of a query and of signs, summed over channels as products, score as the oracle does when interpreted."""

from __future__ import annotations

import json
import os
import subprocess
import sys

ROWS = 'row=page.size, dim="D"'
KEY = "key", 'key.abs() - key.abs().mean("dim")'
CODE = 'cache["s"] * (2 + cache["f"])'
TURNED = 'key.split("dim", block=key.size("dim") // 16).dot(ops.hadamard(code=16, dim=16), "dim")'
TURNED_Q = TURNED.replace("key", "q")
MEAN = 'page.k.mean("token")'
FLOWS = {  # name: declaration of two states of signs, their values, sum over channels
    "apart from one sign": (ROWS, KEY, '(q - cache["s"]).abs().sum("dim")'),
    "apart from a code": (ROWS, KEY, f'(2 * q - {CODE}).abs().sum("dim")'),
    "the smaller, of some channels": (
        'row=page.size, ch="11*D/16"',
        ('key.slice("dim", 0, "11*D/16").rename(dim="ch")', 'key.slice("dim", "5*D/16", "D").rename(dim="ch")'),
        '(q.slice("dim", 0, "11*D/16").rename(dim="ch")).minimum(cache["s"] + 0.5 * cache["f"]).sum("ch")',
    ),
    "levels that a query reaches": (ROWS, KEY, f'ops.where(q > {CODE} / 2, 1.0, q * cache["f"]).sum("dim")'),
    "a query times a code": (ROWS, KEY, f'(q * {CODE}).sum("dim")'),
    "a square": (ROWS, KEY, f'(q - {CODE}).square().sum("dim")'),
    "of a page": ('dim="D"', (MEAN, 'page.k.min("token") + 1.5'), f'(q - {CODE}).abs().sum("dim")'),
    "turned": (
        'row=page.size, block="D/16", code=16',
        (TURNED, TURNED + ".abs() - 0.5"),
        f'({TURNED_Q} - {CODE}).abs().sum("block", "code")',
    ),
    "few values: codes apart": (
        'row=page.size, block="D/16", code=16',
        (TURNED, TURNED + ".abs() - 0.5"),
        f'(({TURNED_Q}).sign() * (2 + (({TURNED_Q}).abs() - 0.5).sign()) - {CODE}).abs().sum("code", "block")',
    ),
    "few values: halves, of some channels": (
        'row=page.size, block="D/16", code=16',
        (TURNED, TURNED + ".abs() - 0.5"),
        f'ops.where({TURNED_Q} > 0.3, {CODE}, 0.5 * cache["f"]).sum("block", "code") + q.mean("dim")',
    ),
    "few values, of a page": (
        'few=8, ch="D"',
        tuple(f'{MEAN}.slice("dim", {n}, {n + 8}).rename(dim="few") * {MEAN}.rename(dim="ch")' for n in (0, 8)),
        f'(q.rename(dim="ch").sign() * q.slice("dim", 0, 8).rename(dim="few").sign() - {CODE}).abs().sum("few", "ch")',
    ),
    "turned, of a page": (
        'block="D/16", code=16',
        tuple(f'({x}).mean("row")' for x in (TURNED, TURNED + ".abs() - 0.5")),
        f'({TURNED_Q}).maximum({CODE}).sum("code", "block")',
    ),
    "two columns of a page": (
        'few=8, ch="D"',
        tuple(f'{MEAN}.slice("dim", {n}, {n + 8}).rename(dim="few") * {MEAN}.rename(dim="ch")' for n in (0, 8)),
        f'(q.rename(dim="ch") - q.slice("dim", 0, 8).rename(dim="few") * {CODE}).abs().sum("few", "ch")',
    ),
    "one dimension of two": (
        'row=page.size, block="D/16", code=16',
        (TURNED, TURNED + ".abs() - 0.5"),
        f'(({TURNED_Q} - {CODE}).abs().sum("code") * {TURNED_Q}.mean("code")).sum("block")',
    ),
}  # fmt: skip
FLOW = '''
from vortex_core import ops, register, vFlow

@register("tried")
class Tried(vFlow):
    """Two states of signs."""

    def create_cache(self, page):
        return {{"s": page.state({state}, dtype="bits"), "f": page.state({state}, dtype="bits")}}

    def forward_cache(self, page):
        key = page.k.rename(token="row")
        return {{"s": {first}, "f": {second}}}

    def forward_indexer(self, q, cache):
        x = {total}
        return ops.topk({result})
'''
CHECK = """
import json, sys, torch
import tests.interp.quick
from vortex_core import library
from vortex_core.compiler import backends
from vortex_core.compiler.interface import BatchView, LayerKV
from vortex_core.geometry import Geometry
from vortex_core.sandbox.jail import run
for name, (source, products) in json.load(sys.stdin).items():
    for SIZE, DIM, group, LENGTH in (
        (16, 64, 1, 145), (16, 128, 3, 95), (64, 64, 8, 384), (16, 64, 16, 144), (64, 128, 2, 321)
    ):
        traced = run(source, "x.py").with_knobs(page_size=SIZE, budget=str(4 * SIZE))
        geometry = Geometry(1, 2, group, DIM, DIM, DIM)
        g = torch.Generator().manual_seed(group)
        pages = 16
        k, v = (torch.randn(2, pages, SIZE, DIM, generator=g).bfloat16().float() for _ in "kv")
        q = torch.randn(2, 2 * group, DIM, generator=g).bfloat16().float()
        table = torch.stack([torch.randperm(pages, generator=g) for _ in range(2)])
        # A row of which nothing is scored beside one that ends within a page, or with one.
        lengths = torch.tensor([LENGTH, SIZE - 1])
        view = BatchView(table, lengths, torch.tensor([4, 4]), LENGTH)
        oracle, flow = (backends.get(b).compile(traced.program, traced.knobs, geometry) for b in ("oracle", "triton"))
        text = flow.code.text
        assert products < 0 or text.count("tl.dot(") >= products, (name, SIZE, DIM)
        assert ("unpack_bytes(" in text) == (name.startswith("few values")), (name, SIZE, DIM)
        states, same = (f.new_states(pages, torch.device("cpu")) for f in (oracle, flow))
        oracle.update(states, LayerKV(k, v), torch.arange(pages), 0)
        for n, field in states.fields.items():
            same.fields[n].data = field.data
        flow.select(q, same, view, 0)
        (want,) = oracle.scores(q, states, view, 0).values()
        (at,) = flow.code.schedule.scores
        work = flow.workspace(2, pages, torch.device("cpu"))
        got = work.scores[at].view(2, 2, -1)[0, :, : LENGTH // SIZE].double()
        error = float((got - want).abs().max() / want.std())
        assert error < 1e-4, (name, SIZE, DIM, group, error)
    print("same", name, flush=True)
"""


def test_sums_of_functions_score_as_the_oracle_does() -> None:
    """In a subprocess, because kernels are interpreted or compiled for a whole process."""
    sources = {}
    for name, (state, (first, second), total) in FLOWS.items():
        result = 'x.max("row", "head")' if "row=" in state else 'x.max("head")'
        text = FLOW.format(state=state, first=first, second=second, total=total, result=result)
        # Without rows there are few pages to a product, and sixteen rows are the least that it takes.
        products = -1 if "page" in name else 0 if name == "one dimension of two" else 1
        sources[name] = text, products
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": "."}
    done = subprocess.run(
        [sys.executable, "-c", CHECK], input=json.dumps(sources), capture_output=True, text=True, env=env, timeout=170
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout.splitlines() == [f"same {n}" for n in FLOWS]


UPDATED = """
import torch
import tests.interp.quick
from vortex_core import library
from vortex_core.compiler import backends
from vortex_core.compiler.interface import LayerKV
from vortex_core.geometry import Geometry
for SIZE, DIM in ((16, 64), (64, 128), (16, 128)):
    traced = library.load("adamas").with_knobs(page_size=SIZE, budget=str(4 * SIZE))
    geometry = Geometry(1, 2, 2, DIM, DIM, DIM)
    g = torch.Generator().manual_seed(SIZE)
    k, v = (torch.randn(2, 16, SIZE, DIM, generator=g).bfloat16().float() for _ in "kv")
    made = []
    for name in ("oracle", "triton"):
        flow = backends.get(name).compile(traced.program, traced.knobs, geometry)
        states = flow.new_states(16, torch.device("cpu"))
        flow.update(states, LayerKV(k, v), torch.arange(3, 16), 0)
        made.append([f.read(slice(None), torch.arange(3, 16), torch.float64) for f in states.fields.values()])
    for want, got in zip(*made, strict=True):
        assert float((want != got).double().mean()) < 1e-4, (SIZE, DIM)
print("same")
"""


def test_states_of_turned_keys_are_those_of_the_oracle() -> None:
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": "."}
    done = subprocess.run(
        [sys.executable, "-c", UPDATED], capture_output=True, text=True, env=env, timeout=170
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "same\n"
