"""Products of a query with stored codes score as the oracle does, whatever the packing, under Triton's interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys

STATES = {  # name: declaration, value, contraction with the query q
    "int4": ('row=page.size, dim="D", dtype="int4"', "key", '(q * cache["x"]).sum("dim")'),
    "int8": ('row=page.size, dim="D", dtype="int8"', "key", '(q * cache["x"]).sum("dim")'),
    "fp8": ('row=page.size, dim="D", dtype="fp8_e4m3"', "key", '(q * cache["x"]).sum("dim")'),
    "bits": ('row=page.size, dim="D", dtype="bits"', "key", '(q * cache["x"]).sum("dim")'),
    "int3": ('row=page.size, dim="D", dtype="int3"', "key", '(q * cache["x"]).sum("dim")'),
    "int2 of slow channels": (
        'row=page.size, dim="D", dtype="int2"',
        "key",
        '(q.slice("dim", "D/2", "D") * cache["x"].slice("dim", "D/2", "D")).sum("dim")',
    ),
    "int3, no whole units": (
        'row=page.size, dim="17*D/64", dtype="int3"',
        'key.slice("dim", 0, "17*D/64")',
        '(q.slice("dim", 0, "17*D/64") * cache["x"]).sum("dim")',
    ),
    "odd": (
        'row=page.size, dim="11*D/16", dtype="int4"',
        'key.slice("dim", 0, "11*D/16")',
        '(0.3 * q.slice("dim", 0, "11*D/16") * cache["x"]).sum("dim")',
    ),
    "squared": (
        'row=page.size, dim="D", dtype="int4"',
        "key",
        '(q.square() * cache["page"].square()).sum("dim") + (q.square() * cache["x"].square()).sum("dim")',
    ),
    # Not whole pieces of what a product takes: fifteen sixteenths of 64 channels leave 8 and 4.
    "what is left, twice": (
        'row=page.size, ch="15*D/16", dtype="int8"',
        'key.slice("dim", "D/16", "D").rename(dim="ch")',
        '(q.slice("dim", "D/16", "D").rename(dim="ch") * cache["x"]).sum("ch")',
    ),
    "what is left of fp8, twice": (
        'row=page.size, ch="7*D/16", dtype="fp8_e4m3"',
        'key.slice("dim", 0, "7*D/16").rename(dim="ch")',
        '(q.slice("dim", 0, "7*D/16").rename(dim="ch") * cache["x"]).sum("ch")',
    ),
    "narrow": (
        'ch="3*D/8", row=page.size, dtype="bits"',
        'key.slice("dim", 0, "3*D/8").rename(dim="ch")',
        '(q.exp().slice("dim", 0, "3*D/8").rename(dim="ch") * cache["x"]).sum("ch")',
    ),
    "part": (
        'row=page.size, dim="D", dtype="int4"',
        "key",
        '(q.slice("dim", "D/2", "D") * cache["x"].slice("dim", "D/2", "D")).sum("dim")',
    ),
    "split": (
        'row=page.size, dim="D", dtype="bits"',
        "key",
        '(q.split("dim", pair=2).sum("pair") * cache["x"].split("dim", pair=2)).sum("dim").sum("pair")',
    ),
    "signs of a page": (
        'row=page.size, dim="D", dtype="bits"',
        "key",
        '(q * cache["page"] * cache["x"]).sum("dim") * cache["norm"]',
    ),
    "heads together": (
        'row=page.size, dim="D", dtype="int4"',
        "key",
        '(q.mean("head") * cache["x"]).sum("dim")',
    ),
    "scale a channel": ('dim="D", row=page.size, dtype="int8"', "key", '(q * cache["x"]).sum("dim")'),
    "4 bits, a scale a channel": (
        'dim="D", row=page.size, dtype="int4"',
        "key",
        '(q * cache["x"]).sum("dim")',
    ),
    "4 bits, a scale a channel, odd": (
        'ch="13*D/16", row=page.size, dtype="int4"',
        'key.slice("dim", "3*D/16", "D").rename(dim="ch")',
        '(q.slice("dim", "3*D/16", "D").rename(dim="ch") * cache["x"]).sum("ch") * cache["norm"]',
    ),
    "3 bits, a scale a channel": (
        'ch="D/2", row=page.size, dtype="int3"',
        'key.slice("dim", 0, "D/2").rename(dim="ch")',
        '(q.slice("dim", 0, "D/2").rename(dim="ch") * cache["x"]).sum("ch")',
    ),
    "2 bits, a scale a channel": (
        'ch="3*D/4", row=page.size, dtype="int2"',
        'key.slice("dim", 0, "3*D/4").rename(dim="ch")',
        '(q.slice("dim", 0, "3*D/4").mean("head").rename(dim="ch") * cache["x"]).sum("ch")',
    ),
    "what a page makes of a query, a channel": (
        'row=page.size, dim="D", dtype="int8"',
        "key",
        '((q * cache["page"]).exp().minimum(3.0) * cache["x"]).sum("dim")',
    ),
    "4 bits times a page": (
        'row=page.size, dim="D", dtype="int4"',
        "key",
        '(q * cache["page"] * cache["x"]).sum("dim")',
    ),
    "largest": (
        'row=page.size, dim="D", dtype="int4"',
        "key",
        '(ops.where(q.largest(5, "dim"), q, 0.0) * cache["x"]).sum("dim")',
    ),
    "a mask a token": (
        'row=page.size, dim="D"',
        "key",
        '(q * ops.where(cache["x"].largest(9, "dim"), cache["x"], 0.0)).sum("dim")',
    ),
}
FLOW = '''
from vortex_core import ops, register, vFlow

@register("tried")
class Tried(vFlow):
    """A token-level state of some packing."""

    def create_cache(self, page):
        return {{"x": page.state({state}), "page": page.state(dim="D", dtype="int4"),
                "norm": page.state(row=page.size, dtype="fp8_e5m2")}}

    def forward_cache(self, page):
        key = page.k.rename(token="row")
        return {{"x": {value}, "page": page.k.mean("token"), "norm": key.norm("dim")}}

    def forward_indexer(self, q, cache):
        logits = {logits}
        weight = (logits - logits.max("page", "row")).exp().sum("row")
        return ops.topk({result})
'''
CHECK = """
import json, sys, torch
import tests.interp.quick
from vortex_core.compiler import backends
from vortex_core.compiler.interface import BatchView, LayerKV
from vortex_core.geometry import Geometry
from vortex_core.sandbox.jail import run
DIM = 64
for name, source in json.load(sys.stdin).items():
    wide = ((64, 2),) if 'a channel' in name else ()
    for SIZE, group in ((16, 3), *(((16, 8),) if name in ('bits', 'narrow') else ()), *wide):
        LENGTH = 9 * SIZE + SIZE // 2
        traced = run(source, "x.py").with_knobs(page_size=SIZE, budget=str(4 * SIZE))
        geometry = Geometry(1, 2, group, DIM, DIM, DIM)
        g = torch.Generator().manual_seed(group)
        pages = 16  # as many as a backend would have room for
        k, v = (torch.randn(2, pages, SIZE, DIM, generator=g).bfloat16().float() for _ in "kv")
        q = torch.randn(1, 2 * group, DIM, generator=g).bfloat16().float()
        view = BatchView(torch.randperm(pages, generator=g)[None], torch.tensor([LENGTH]), torch.tensor([4]), LENGTH)
        oracle, flow = (backends.get(b).compile(traced.program, traced.knobs, geometry) for b in ("oracle", "triton"))
        states, same = (f.new_states(pages, torch.device("cpu")) for f in (oracle, flow))
        oracle.update(states, LayerKV(k, v), torch.arange(pages), 0)
        for n, field in states.fields.items():  # the same numbers: a rounding that differs is not the product's
            same.fields[n].data, same.fields[n].scale = field.data, field.scale
        flow.select(q, same, view, 0)
        (want,) = oracle.scores(q, states, view, 0).values()
        (at,) = flow.code.schedule.scores
        work = flow.workspace(1, pages, torch.device("cpu"))
        got = work.scores[at].view(2, -1)[:, : LENGTH // SIZE].double()
        error = float((got - want).abs().max() / want.std())
        assert error < 1e-4, (name, group, error)
    print("same", name, flush=True)
"""


def test_products_score_as_the_oracle_does() -> None:
    """In a subprocess, because kernels are interpreted or compiled for a whole process."""
    sources = {}
    for name, (state, value, logits) in STATES.items():
        result = (
            "weight / weight.sum('page')"
            if 'mean("head")' in logits
            else "(weight / weight.sum('page')).mean('head')"
        )
        sources[name] = FLOW.format(state=state, value=value, logits=logits, result=result)
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": "."}
    done = subprocess.run(
        [sys.executable, "-c", CHECK],
        input=json.dumps(sources),
        capture_output=True,
        text=True,
        env=env,
        timeout=170,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == [f"same {n}" for n in STATES]
