"""Mended lines for states, selections and knobs."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence

from vortex_core.flow.mending.place import (
    Edit,
    Place,
    changed,
    close,
    constant,
    dims_of,
    receiver,
    text_of,
)
from vortex_core.ir.knobs import Knobs
from vortex_core.ir.program import SCALED, STATE_DTYPES
from vortex_core.ir.types import SCOPES
from vortex_core.ir.verify import NOT_CARRIED


def no_state(place: Place) -> Edit | None:
    """VF030: a near name, or the only one there is."""
    known = [n.strip() for n in str(place.facts["known"]).split(",")]
    wrong = place.facts["name"]
    meant = close(str(wrong), known) or (known[0] if len(known) == 1 and known[0] != "none" else None)
    if meant is None:
        return None
    for node in place.parents():
        if isinstance(node, ast.Subscript):
            return Edit(node.slice, f'"{meant}"')
    return None


def _declaration(place: Place, name: object) -> ast.Call | None:
    for node in ast.walk(place.tree):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                declares = isinstance(value, ast.Call) and getattr(value.func, "attr", "") == "state"
                if declares and isinstance(key, ast.Constant) and key.value == name:
                    assert isinstance(value, ast.Call)
                    return value
    return None


def not_carried(place: Place) -> Edit | None:
    """VF033: a state that forward_indexer assigns is carried, and not written by forward_cache."""
    name = place.facts["name"]
    assigned = any(
        isinstance(target, ast.Subscript)
        and isinstance(target.slice, ast.Constant)
        and target.slice.value == name
        for n in ast.walk(place.tree)
        if isinstance(n, ast.Assign | ast.AugAssign)
        for target in (n.targets if isinstance(n, ast.Assign) else [n.target])
    )
    declaration = _declaration(place, name)
    if declaration is None or not assigned:
        return None
    if any(k.arg == "carried" for k in declaration.keywords):
        return _without(place, name, declaration)
    return changed(declaration, lambda call: call.keywords.append(ast.keyword("carried", constant(True))))


def _without(place: Place, name: object, declaration: ast.Call) -> Edit | None:
    """The dictionary that forward_cache returns, without a state that only forward_indexer may write."""
    for node in ast.walk(place.tree):
        if isinstance(node, ast.Dict):
            pairs = list(zip(node.keys, node.values, strict=True))
            kept = [(k, v) for k, v in pairs if not (isinstance(k, ast.Constant) and k.value == name)]
            if len(kept) < len(pairs) and declaration not in node.values:
                inside = ", ".join(f"{text_of(k)}: {text_of(v)}" if k else f"**{text_of(v)}" for k, v in kept)
                return Edit(node, "{" + inside + "}")
    return None


def state_type(place: Place) -> Edit | None:
    """VF032: the value without the dimension that nobody declared, else the declaration with those of the value."""
    found, want = dims_of(str(place.facts["found"])), dims_of(str(place.facts["want"]))
    extra, missing = [d for d in found if d not in want], [d for d in want if d not in found]
    name = place.facts["name"]
    value = next(
        (
            v
            for n in ast.walk(place.tree)
            if isinstance(n, ast.Dict)
            for k, v in zip(n.keys, n.values, strict=True)
            if isinstance(k, ast.Constant)
            and k.value == name
            and getattr(getattr(v, "func", None), "attr", "") != "state"
        ),
        None,
    )
    if value is not None and len(extra) == len(missing) == 1 and extra[0][1] == missing[0][1]:
        return Edit(value, f'{receiver(value)}.rename({extra[0][0]}="{missing[0][0]}")')
    if value is not None and extra and not missing:
        return Edit(
            value, f"{receiver(value)}.mean({', '.join(repr(n) for n, _ in extra)})".replace("'", '"')
        )
    declaration = _declaration(place, name)
    if declaration is None:
        return None
    own = any(k.arg == "scope" and getattr(k.value, "value", "") == "request" for k in declaration.keywords)
    if any(n in ("page", "token") or (n == "head" and not own) for n, _ in found):
        return None
    kept = [k for k in declaration.keywords if k.arg in ("dtype", "carried", "init", "scope")]
    if not found:
        kept = [k for k in kept if not (k.arg == "dtype" and getattr(k.value, "value", "") in SCALED)]
    # The last dimension declared is the one that shares a scale: the author's order stays.
    place_of = {k.arg: n for n, k in enumerate(declaration.keywords)}
    found = sorted(found, key=lambda dim: place_of.get(dim[0], len(place_of)))
    inside = [f"{n}={e if e.isdigit() else repr(e)}".replace("'", '"') for n, e in found]
    return Edit(
        declaration,
        f"{text_of(declaration.func)}({', '.join([*inside, *map(text_of, kept)])})".replace("'", '"'),
    )


_DTYPES = {
    "float32": "fp32", "float": "fp32", "float16": "fp16", "half": "fp16", "bfloat16": "bf16", "float8": "fp8_e4m3",
    "fp8": "fp8_e4m3", "float8_e4m3fn": "fp8_e4m3", "float8_e5m2": "fp8_e5m2", "e4m3": "fp8_e4m3", "uint8": "int8",
    "uint4": "int4", "int16": "bf16", "int32": "fp32", "bool": "bits", "int1": "bits", "sign": "bits", "bit": "bits",
    "uint2": "int2", "uint3": "int3", "fp4": "int4", "fp3": "int3", "fp2": "int2", "ternary": "int2",
}  # fmt: skip


def bad_state(place: Place) -> Edit | None:
    """VF034: the dtype that was meant, a dimension by another name, a scalar as a float."""
    why, call = str(place.facts["why"]), place.call
    if not isinstance(call, ast.Call) or getattr(call.func, "attr", "") != "state":
        call = _declaration(place, place.facts["name"])
    if call is None:
        return None

    def dtype(new: str) -> Edit:
        def change(c: ast.Call) -> None:
            c.keywords = [k for k in c.keywords if k.arg != "dtype"] + [ast.keyword("dtype", constant(new))]

        edit = changed(call, change)
        return Edit(edit.node, edit.text.replace("'", '"'))

    if wrong := re.fullmatch(r"dtype '(.*)'", why):
        near = _DTYPES.get(wrong.group(1).lower()) or close(wrong.group(1), STATE_DTYPES)
        return None if near is None else dtype(near)
    if why.startswith("a scalar with dtype"):
        return dtype("fp16")
    if why.startswith("carried with dtype"):
        return dtype("bf16")
    if why == NOT_CARRIED:
        return changed(call, lambda c: c.keywords.append(ast.keyword("carried", constant(True))))
    if wrong := re.fullmatch(r"scope '(.*)'", why):
        meant = close(wrong.group(1), SCOPES) or "request"  # nobody needs to say that a state is a page's

        def scope(c: ast.Call) -> None:
            c.keywords = [k for k in c.keywords if k.arg != "scope"] + [ast.keyword("scope", constant(meant))]

        edit = changed(call, scope)
        return Edit(edit.node, edit.text.replace("'", '"'))
    if why.startswith("an initial value"):
        return changed(call, lambda c: setattr(c, "keywords", [k for k in c.keywords if k.arg != "init"]))
    if wrong := re.fullmatch(r"dimension '(token|head|page)'", why):

        def rename(c: ast.Call) -> None:
            for k in c.keywords:
                if k.arg == wrong.group(1):
                    k.arg = "row"

        return changed(call, rename) if wrong.group(1) == "token" else None
    return None


# ---- the selection and the knobs ---------------------------------------------------------------------------


def no_selection(place: Place) -> Edit | None:
    """VF040: a returned score is selected from."""
    dims = dims_of(str(place.facts.get("type", "")))
    for function in ast.walk(place.tree):
        if (
            isinstance(function, ast.FunctionDef)
            and function.name == "forward_indexer"
            and ("page", "") in dims
        ):
            returns = [n for n in ast.walk(function) if isinstance(n, ast.Return) and n.value is not None]
            if len(returns) == 1 and (value := returns[0].value) is not None:
                return Edit(value, f"ops.topk({_reduced(value, dims)})")
    return None


def _reduced(value: ast.expr, dims: Sequence[tuple[str, str]]) -> str:
    extra = [f'"{n}"' for n, _ in dims if n not in ("page", "head")]
    return f"{receiver(value)}.max({', '.join(extra)})" if extra else text_of(value)


def bad_score(place: Place) -> Edit | None:
    """VF041: what a score may not have is reduced."""
    dims, call = dims_of(str(place.facts["found"])), place.call
    if ("page", "") not in dims or call is None or not call.args:
        return None
    return Edit(call.args[0], _reduced(call.args[0], dims))


def bad_union(place: Place) -> Edit | None:
    """VF043: the selection of each query head takes its best head."""
    node = place.node
    if not isinstance(node, ast.BinOp):
        return None
    side = node.left if "head" in str(place.facts["a"]) else node.right
    if isinstance(side, ast.Call) and side.args:
        return Edit(side.args[0], f'{receiver(side.args[0])}.max("head")')
    return None


_BUDGET = {
    "tokens": "length", "n": "length", "L": "length", "seq_len": "length", "context": "length", "ctx": "length",
    "context_length": "length", "N": "length", "seqlen": "length", "num_layers": "layers", "layer_idx": "layer",
}  # fmt: skip


def _knob(place: Place, name: str) -> ast.expr | None:
    for call in place.calls("Knobs"):
        for keyword in call.keywords:
            if keyword.arg == name:
                return keyword.value
    return None


def bad_budget(place: Place) -> Edit | None:
    """VF060: the names a budget knows."""
    text, value = str(place.facts["text"]), _knob(place, "budget")
    found = re.sub(r"[A-Za-z_]\w*", lambda m: _BUDGET.get(m.group(), m.group()), text)
    return None if value is None or found == text else Edit(value, f'"{found}"')


def bad_knob(place: Place) -> Edit | None:
    """VF061: the nearest legal number."""
    name = str(place.facts["name"])
    value, numbers = _knob(place, name), [int(n) for n in re.findall(r"\b\d+\b", str(place.facts["rule"]))]
    try:
        wrong = ast.literal_eval(str(place.facts["value"]))
    except (ValueError, SyntaxError):
        return None
    if value is None or not isinstance(wrong, int | float) or not numbers:
        return None
    return Edit(value, str(min(numbers, key=lambda n: (abs(n - wrong), n))))


def no_dense_layer(place: Place) -> Edit | None:
    """VF067: layer 0 among the dense ones."""
    layers = repr((0, *ast.literal_eval(str(place.facts["found"]))))
    value, calls = _knob(place, "dense_layers"), place.calls("Knobs")
    if value is not None:
        return Edit(value, layers)
    keyword = ast.keyword("dense_layers", ast.parse(layers, mode="eval").body)
    return changed(calls[0], lambda call: call.keywords.append(keyword)) if calls else None


def small_budget(place: Place) -> Edit | None:
    """VF063: a budget that leaves as many pages to choose as are kept."""
    size = _knob(place, "page_size")
    page = size.value if isinstance(size, ast.Constant) and isinstance(size.value, int) else Knobs.page_size
    value = _knob(place, "budget")
    return None if value is None else Edit(value, str(2 * int(place.facts["kept"]) * page))
