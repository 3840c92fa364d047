"""The replacement an error names, applied by a script, yields a legal program; other errors show beside it."""

from __future__ import annotations

import json

import pytest

from tests.null.flow.test_errors import DOT, HEAD, INDEX, MEAN, WARNED, WRONG, C, knobs, states
from vortex_core.errors import VortexError
from vortex_core.flow.mending import MENDS
from vortex_core.sandbox.answer import Heard
from vortex_core.sandbox.jail import run
from vortex_core.sandbox.load import trace_source

ROW = '"c": page.state(row=page.size, dim=page.head_dim)'
ROWS = 'return ops.topk((q * cache["c"]).sum("dim").max("row", "head"))'
BY_TOKEN = '"c": page.state(token=page.size, dim=page.head_dim)'
SCALAR = '"c": page.k.mean("token", "dim")'
ONE_ROW = '"c": page.k.split("token", row=1).mean("token")'
REMEMBERED = f'cache["r"] = 0.9 * cache["r"] + {DOT}\n        return ops.topk(cache["r"])'
OF_REQUEST = (
    f'cache["r"] = q.sum("head", "dim")\n        return ops.topk({DOT} + cache["r"] * ops.position())'
)
BEFORE = '"r": page.state(carried=True, scope="request")'
AS_BEFORE = 'r, cache["r"] = cache["r"], q\n        return ops.topk((r * cache["c"]).sum("dim").max("head"))'
KEYS = '"c": page.k.rename(token="row")'


def scored(line: str) -> str:
    """A flow whose score is made in one line from `x: (page, head, row, dim)` and `c: (page, row, dim)`."""
    body = f'c = cache["c"]\n        x = q * c\n        {line}\n        return ops.topk(y.max("row", "dim", "head"))'
    return states(ROW, KEYS, body)


def by_mass(settings: str) -> str:
    """A flow that selects by what a dense layer before it attends to."""
    return knobs(settings).replace("ops.position()", "ops.dense_mass().sum('head')")


# code, wrong source, what must stand in the mended lines
MENDED: list[tuple[str, str, str]] = [
    ("VF002", "import torch\n" + states(), "pass"),
    ("VF002", "from typing import Any\n" + states(), "pass"),
    ("VF002", states().replace("import Knobs, ops", "import Tensor, ops"), "import ops, register, vFlow"),
    ("VF005", scored("y = torch.maximum(x, c)"), "ops.maximum(x, c)"),
    ("VF005", scored("y = torch.nn.functional.relu(x)"), "ops.relu(x)"),
    ("VF005", scored("y = x * page.head_dim ** -0.5"), 'ops.size("D") ** -0.5'),
    ("VF005", scored('y = x.cumsum(axis="row")'), "x.cumsum(dim="),
    ("VF005", scored('y = x.cumsum("row", dtype=3)'), "x.cumsum("),
    ("VF005", states(body=f"return ops.topk({DOT})".replace('cache["c"]', "cache.c")), 'cache["c"]'),
    ("VF005", states(body=f"return ops.topk({DOT})".replace('cache["c"]', 'cache.get("c")')), 'cache["c"]'),
    ("VF005", states(written='"c": page.keys.mean("token")'), "page.k.mean"),
    ("VF005", states(written='"c": page.k.sum("token") / page.page_size'), "page.size"),
    ("VF010", scored("y = x.softmax(-2)"), 'x.softmax("row")'),
    ("VF010", scored('y = x * c.sum("rows")'), 'c.sum("row")'),
    ("VF010", states(written='"c": page.k.mean(0)'), 'page.k.mean("token")'),
    ("VF010", states(ROW, '"c": page.k.rename(token="row") - page.k.mean("row")'), 'page.k.mean("token")'),
    ("VF010", states(written='"c": page.k.mean(dim=-2)'), 'mean(dim="token")'),
    ("VF012", scored("y = ops.where(c, x, 0)"), "ops.where(c > 0, x, 0)"),
    ("VF012", scored("y = ops.where(~x, x, 0)"), "~(x > 0)"),
    ("VF012", scored("y = x * (x & c)"), "(x > 0) & (c > 0)"),
    ("VF014", states('"c": page.state(dim="head_dim")'), 'dim="D"'),
    ("VF014", states('"c": page.state(dim=page.head_dim, row=1.0)', ONE_ROW, ROWS), "row=1"),
    ("VF016", states(body=f"return ops.topp({DOT}, 1.5)"), "1.0"),
    ("VF016", scored('y = x * c.sum("row", keepdim=True)'), 'c.sum("row")'),
    ("VF016", scored("y = x * c.sum()"), 'c.sum("row", "dim")'),
    ("VF016", scored('y = x.maxpool(4, "row")'), "x.maxpool(5"),
    ("VF016", scored("y = x.max('dim')[0] * x"), "x.max('dim') * x"),
    ("VF016", scored("y = c[..., :16] * q[:, :16]"), '.slice("dim", 0, 16)'),
    ("VF020", scored("y = ops.where(0 < x < 1, x, 0)"), "(0 < x) & (x < 1)"),
    ("VF020", scored("y = ops.where(x > 0 and c > 0, x, 0)"), "&"),
    ("VF020", scored("y = ops.where(not x > 0, x, 0)"), "~(x > 0)"),
    ("VF020", scored("y = x if c > 0 else -x"), "ops.where(c > 0, x, -x)"),
    ("VF020", scored("y = max(x, c)"), "ops.maximum(x, c)"),
    ("VF020", scored("y = min(x, c, 1.0)"), "ops.minimum(ops.minimum(x, c), 1.0)"),
    ("VF020", scored("y = x * float(x.max('row'))"), "x.max('row')"),
    ("VF021", scored('y = ops.where(x > 0, x, float("-inf"))'), "-1e30"),
    ("VF021", scored("y = ops.where(x > 0, x, -math.inf)"), "-1e30"),
    ("VF023", states(body='return ops.topk((q @ cache["c"]).max("head"))'), 'ops.dot(q, cache["c"], "dim")'),
    ("VF023", scored("y = x.unsqueeze(0)"), "y = x"),
    ("VF023", scored("y = x * c.transpose(0, 1)"), "x * c"),
    ("VF023", scored("y = x * x.shape[-1]"), 'x.size("dim")'),
    ("VF023", scored("y = x.half()"), 'x.to("fp16")'),
    ("VF023", scored("y = x.softmaxx('row')"), "x.softmax"),
    ("VF023", scored("y = x * x.max('row').values"), "x * x.max('row')"),
    ("VF023", states(body=f"return {DOT}.topk(8)"), "ops.topk("),
    ("VF024", scored("y = ops.maximun(x, c)"), "ops.maximum"),
    ("VF024", scored("y = x + ops.zeros_like(x)"), "0 * x"),
    ("VF024", states(body='return ops.topk(ops.matmul(q, cache["c"]).max("head"))'), "ops.dot("),
    ("VF024", scored("y = x * math.squrt(2)"), "math.sqrt"),
    ("VF025", states().replace("class W", '@register("my flow!")\nclass W'), '"my_flow"'),
    ("VF030", states(body='return ops.topk((q * cache["k"]).sum("dim").max("head"))'), 'cache["c"]'),
    ("VF004", states().replace("forward_indexer", "forward_index"), "def forward_indexer(self, q, cache)"),
    ("VF031", states().replace("forward_cache", "update_cache"), "def forward_cache(self, page)"),
    ("VF031", states(C + ', "r": page.state(dtype="fp32")', MEAN, REMEMBERED), "carried=True"),
    ("VF033", states(C + ', "r": page.state()', MEAN + ', "r": page.v.norm("dim").mean("token")', REMEMBERED),
     "carried=True"),
    ("VF032", states(written='"c": page.k'), '.mean("token")'),
    ("VF032", states(written='"c": page.k.mean("token", "dim")', body='return ops.topk(cache["c"])'), "page.state()"),
    ("VF032", states(ROW, '"c": page.k', ROWS), 'rename(token="row")'),
    ("VF034", states('"c": page.state(dim=page.head_dim, dtype="float16")'), 'dtype="fp16"'),
    ("VF034", states('"c": page.state(dtype="int8")', SCALAR, 'return ops.topk(cache["c"])'), 'dtype="fp16"'),
    ("VF034", states('"c": page.state(dim=page.head_dim, init=1.0)'), "page.state(dim=page.head_dim)"),
    ("VF034", states(C + ', "r": page.state(dtype="fp32", scope="request")', MEAN, OF_REQUEST), "carried=True"),
    ("VF034", states(C + ', "r": page.state(carried=True, scope="sequence")', MEAN, OF_REQUEST), 'scope="request"'),
    ("VF032", states(C + f", {BEFORE}", MEAN, AS_BEFORE), 'page.state(head="G", dim="D"'),
    ("VF034", states(BY_TOKEN, '"c": page.k', ROWS), "row=page.size"),
    ("VF040", states(body=f"return {DOT}"), "return ops.topk("),
    ("VF040", states(body='return q * cache["c"]'), '.max("dim"'),
    ("VF041", states(body='return ops.topk(q * cache["c"])'), '.max("dim")'),
    ("VF043", WRONG["VF043"][0], '.max("head")'),
    ("VF060", knobs('Knobs(budget="max(256, seq_len / 16)")'), "length / 16"),
    ("VF061", knobs("Knobs(page_size=24)"), "page_size="),
    ("VF061", knobs("Knobs(keep_last=0)"), "keep_last=1"),
    ("VF065", scored('y = x * ops.param("w", row="S", dim="D").mean("row")'), "ops.signs("),
    ("VF063", knobs("Knobs(budget=16)"), "budget=96"),
    ("VF067", by_mass("Knobs(budget='256', dense_layers=(2, 9))"), "dense_layers=(0, 2, 9)"),
    ("VF067", by_mass("Knobs(budget='256')"), "dense_layers=(0,)"),
]  # fmt: skip


def wrong(source: str) -> VortexError | None:
    try:
        run(source, "flow.py")
    except VortexError as error:
        return error
    return None


def first_error(source: str) -> VortexError:
    error = wrong(source)
    assert error is not None, "it is legal"
    return error


def mended(source: str, most: int = 9) -> tuple[str, list[str]]:
    """The source with every replacement applied, one after another, and the codes of the errors on the way."""
    codes: list[str] = []
    for _ in range(most):
        error = wrong(source)
        if error is None:
            return source, codes
        codes.append(error.code)
        assert error.replacement is not None, error
        source = error.replacement.apply(source)
    raise AssertionError(codes)


@pytest.mark.parametrize(("code", "source", "words"), MENDED, ids=[f"{c}-{w[:24]}" for c, _, w in MENDED])
def test_the_replacement_applied_is_a_legal_program(code: str, source: str, words: str) -> None:
    error = first_error(source)
    assert error.code == code, error
    assert error.replacement is not None, error
    assert words in error.replacement.text
    assert words in str(error)
    assert error.to_json()["replacement"]["text"] == error.replacement.text
    mended(source)


def test_every_code_that_names_a_replacement_is_measured() -> None:
    assert {code for code, _, _ in MENDED} == set(MENDS)


@pytest.mark.parametrize("code", [c for c in WRONG if c not in WARNED])
def test_no_example_of_the_catalogue_is_mended_into_something_illegal(code: str) -> None:
    """Where the replacement is not the end, the next error says what is left."""
    source, _ = WRONG[code]
    error = first_error(source)
    if error.replacement is None:
        return
    following = wrong(error.replacement.apply(source))
    assert following is None or (following.message != error.message and error.further)


def test_all_errors_are_told_at_once() -> None:
    source = (
        "import torch\n"
        + HEAD
        + """
    def create_cache(self, page):
        return {"c": page.state(dim=page.head_dim, dtype="bfloat16")}
    def forward_cache(self, page):
        return {"c": page.k.mean(0, keepdim=True)}
    def forward_indexer(self, q, cache):
        s = torch.maximum(q * cache["k"], 0).summ("dim")
        return ops.topk(s.unsqueeze(-1))
"""
    )
    error = first_error(source)
    codes = [error.code, *(e.code for e in error.further)]
    assert codes == ["VF002", "VF034", "VF016", "VF010", "VF005", "VF030", "VF023", "VF023"]
    _, walked = mended(source)
    assert walked == codes
    again = VortexError.from_json(json.loads(json.dumps(error.to_json())))
    assert again.to_json() == error.to_json()
    assert str(again) == str(error)


def test_a_mistake_in_one_method_does_not_hide_one_in_another() -> None:
    index = "return ops.topk(q - ops.pages())"
    error = first_error(states(written='"c": page.k.mean("token") + ops.mass()', body=index))
    assert error.code == "VF018"
    assert error.replacement is None
    assert [e.code for e in error.further] == ["VF041"]
    assert error.further[0].location is not None
    assert error.further[0].location.text == index


def test_the_jail_hands_replacements_on() -> None:
    source = states(C, MEAN, f"return ops.topk({DOT}.unsqueeze(0))")
    with pytest.raises(VortexError) as caught:
        trace_source(source, "flow.py")
    assert caught.value.replacement is not None
    trace_source(caught.value.replacement.apply(source))


def test_a_replacement_keeps_what_surrounds_it() -> None:
    two = "é = 1; s = ops.maximun(ops.position(),  # of pages\n            é)  # kept\n"
    source = INDEX + two + "        return ops.topk(s)"
    error = first_error(source)
    assert error.replacement is not None
    assert error.replacement.apply(source) == source.replace("maximun", "maximum")


@pytest.mark.parametrize(
    "replacement",
    [
        {"first": 0, "last": 1, "text": "x"}, {"first": 3, "last": 2, "text": "x"},
        {"first": 1, "last": 99, "text": "x"},
        {"first": 1, "last": 1}, {"first": 1, "last": 1, "text": 3, "more": 4}, 7,
    ],
)  # fmt: skip
def test_a_forged_replacement_is_not_believed(replacement: object) -> None:
    """What a program that took over its tracer may say of its source ends with the source."""
    told = {
        "code": "VF010",
        "message": "m",
        "remedy": "r",
        "line": 1,
        "replacement": replacement,
        "further": [],
    }
    with pytest.raises(VortexError, match="VF009"):
        Heard("x = 1\ny = 2", "f.py").read(json.dumps({"error": told}).encode(), b"", None)


def test_a_replacement_unfit_to_show_is_left_out() -> None:
    told = {"code": "VF010", "message": "m", "remedy": "r", "line": 1, "further": []}
    told["replacement"] = {"first": 1, "last": 1, "text": "x = '\x1b[2J'"}
    with pytest.raises(VortexError, match="VF010") as caught:
        Heard("x = 1\ny = 2", "f.py").read(json.dumps({"error": told}).encode(), b"", None)
    assert caught.value.replacement is None


def test_a_mended_declaration_keeps_the_order_that_decides_the_scale() -> None:
    """The last dimension declared shares a scale: a replacement that reorders them would be another program."""
    source = """from vortex_core import vFlow, ops


class Flow(vFlow):
    def create_cache(self, page):
        return {"c": page.state(dim=16, row=32, dtype="int4")}

    def forward_cache(self, page):
        k = page.k.slice("dim", 0, 16).rename(token="row")
        return {"c": ops.concat([k, k * 0.5], "row")}

    def forward_indexer(self, q, cache):
        return ops.topk((q.slice("dim", 0, 16) * cache["c"]).sum("dim").max("row").max("head"))
"""
    with pytest.raises(VortexError, match="VF032") as caught:
        run(source, "flow.py")
    assert caught.value.replacement is not None
    mended = caught.value.replacement.apply(source)
    assert 'page.state(dim=16, row="2*S", dtype="int4")' in mended
    (state,) = run(mended, "flow.py").program.states
    assert state.scale_dim == "row"
