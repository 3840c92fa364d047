"""Mended lines for dimensions, arguments, values and names of operators."""

from __future__ import annotations

import ast
import re

from vortex_core.flow.mending.place import (
    Edit,
    Place,
    changed,
    close,
    constant,
    receiver,
    swapped,
    text_of,
)

_ALIASES = {
    "tokens": "token",
    "row": "token",
    "token": "row",
    "seq": "page",
    "heads": "head",
    "pages": "page",
}


def no_such_dim(place: Place) -> Edit | None:
    """VF010: a position becomes a name, a near name the name."""
    known = [n.strip() for n in str(place.facts["known"]).split(",")]
    wrong, call = place.facts["dim"], place.call
    if call is None or ":" in known[0]:
        return None
    if isinstance(wrong, int) and not isinstance(wrong, bool) and -len(known) <= wrong < len(known):
        return swapped(call, wrong, known[wrong])
    if isinstance(wrong, str):
        alias = _ALIASES.get(wrong)
        meant = alias if alias in known else close(wrong, known)
        inner = [n for n in known if n not in ("page", "head")]
        meant = meant or (inner[0] if len(inner) == 1 else None)
        return None if meant is None else swapped(call, wrong, meant)
    return None


def wrong_kind(place: Place) -> Edit | None:
    """VF012: what should be a mask is compared with 0."""
    match place.node:
        case ast.Call(func=ast.Attribute(attr="where"), args=[mask, *_]):
            return Edit(mask, f"{receiver(mask)} > 0")
        case ast.UnaryOp(op=ast.Invert(), operand=inner):
            return Edit(inner, f"({receiver(inner)} > 0)")
        case ast.BinOp(op=ast.BitAnd() | ast.BitOr() as op, left=left, right=right) as node:
            sign = "&" if isinstance(op, ast.BitAnd) else "|"
            return Edit(node, f"({receiver(left)} > 0) {sign} ({receiver(right)} > 0)")
    return None


_EXTENTS = {
    "head_dim": "D", "dim": "D", "d": "D", "page_size": "S", "size": "S", "token": "S", "tokens": "S", "s": "S",
    "rope_dim": "R", "nope_dim": "N", "head": "G", "heads": "G",
}  # fmt: skip


def bad_extent(place: Place) -> Edit | None:
    """VF014: a size's usual name becomes its symbol, a whole float a whole number."""
    call = place.call
    if call is None:
        return None
    try:
        wrong = ast.literal_eval(str(place.facts["found"]))
    except (ValueError, SyntaxError):
        return None
    if isinstance(wrong, str) and wrong.lower() in _EXTENTS:
        return swapped(call, wrong, _EXTENTS[wrong.lower()])
    if isinstance(wrong, float) and wrong >= 1:
        return swapped(call, wrong, int(wrong))
    return None


def bad_argument(place: Place) -> Edit | None:
    """VF016: an argument within its bounds, a reduction that names its dimensions, a slice by name."""
    facts, call = place.facts, place.call
    if facts["op"] == "indexing":
        return _indexing(place)
    if call is None:
        return None
    if facts["name"] == "keepdim":
        return changed(call, lambda c: setattr(c, "keywords", [k for k in c.keywords if k.arg != "keepdim"]))
    if facts["name"] == "dims" and facts.get("known"):
        named = [n for n in facts["known"] if n != "page"] or list(facts["known"])
        return changed(call, lambda c: c.args.extend(constant(n) for n in named))
    if bounds := re.search(r"number from (\S+) to (\S+)", str(facts["want"])):
        try:
            wrong = ast.literal_eval(str(facts["found"]))
        except (ValueError, SyntaxError):
            return None
        if isinstance(wrong, int | float):
            low, high = map(float, bounds.groups())
            near = min(max(float(wrong), low), high)
            whole = "whole" in str(facts["want"])
            near = int(near) | ("odd" in str(facts["want"])) if whole else near
            return swapped(call, wrong, near)
    return None


def _indexing(place: Place) -> Edit | None:
    node = place.node
    if not isinstance(node, ast.Subscript):
        return None
    value, key = node.value, node.slice
    if isinstance(key, ast.Constant) and key.value == 0:  # x.max(dim)[0]
        return Edit(node, text_of(value))
    parts = key.elts if isinstance(key, ast.Tuple) else [key]
    dims = list(place.facts["dims"])
    dots = [n for n, p in enumerate(parts) if isinstance(p, ast.Constant) and p.value is Ellipsis]
    if dots:
        parts = [ast.Slice()] * (len(dims) - len(parts) + 1) + parts[dots[0] + 1 :]
    text = receiver(value)
    for part, (name, extent) in zip(parts, dims, strict=False):
        if not isinstance(part, ast.Slice) or part.step is not None:
            return None
        if part.lower is None and part.upper is None:
            continue
        low = "0" if part.lower is None else text_of(part.lower)
        high = f'"{extent}"' if part.upper is None else text_of(part.upper)
        text += f'.slice("{name}", {low}, {high})'
    return Edit(node, text)


# ---- values, methods, operators ----------------------------------------------------------------------------


def no_value(place: Place) -> Edit | None:
    """VF020: Python's own logic on vTensors becomes the language's."""
    chosen: ast.AST | None = None
    for node in place.parents():
        if (
            isinstance(node, ast.BoolOp | ast.IfExp)
            or (isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not))
            or (isinstance(node, ast.Compare) and len(node.ops) > 1)
        ):
            chosen = node
        elif not isinstance(node, ast.Compare) and node is not place.node:
            break
    match chosen:
        case ast.IfExp(test=test, body=a, orelse=b) as node:
            return Edit(node, f"ops.where({_logic(test)}, {text_of(a)}, {text_of(b)})")
        case ast.BoolOp() | ast.Compare() | ast.UnaryOp() as node:
            return Edit(node, _logic(node))
    match place.node:
        case ast.Call(func=ast.Name(id=("max" | "min") as name), args=[first, *rest]) as node if rest:
            text = text_of(first)
            for argument in rest:
                text = f"ops.{name}imum({text}, {text_of(argument)})"
            return Edit(node, text)
        case ast.Call(func=ast.Name(id="float"), args=[x]) as node:
            return Edit(node, text_of(x))
        case ast.Call(func=ast.Name(id="int"), args=[x]) as node:
            return Edit(node, f"{receiver(x)}.floor()")
    return None


def _logic(node: ast.expr) -> str:
    match node:
        case ast.BoolOp(op=op, values=values):
            sign = " & " if isinstance(op, ast.And) else " | "
            return "(" + sign.join(f"({_logic(v)})" for v in values) + ")"
        case ast.UnaryOp(op=ast.Not(), operand=inner):
            return f"~({_logic(inner)})"
        case ast.Compare(left=left, ops=signs, comparators=rights) if len(signs) > 1:
            lefts = [left, *rights]
            pairs = [ast.Compare(a, [o], [b]) for a, o, b in zip(lefts, signs, rights, strict=False)]
            return "(" + " & ".join(f"({text_of(p)})" for p in pairs) + ")"
    return text_of(node)


def infinite(place: Place) -> Edit | None:
    """VF021: infinity becomes a number that is large enough."""
    node = place.node
    if not isinstance(node, ast.expr):
        return None
    text = text_of(node)
    found = re.sub(r"""float\(['"]-inf(?:inity)?['"]\)""", "-1e30", text)
    found = re.sub(r"""float\(['"]\+?inf(?:inity)?['"]\)""", "1e30", found)
    found = re.sub(r"\bmath\.inf\b", "1e30", found)
    found = re.sub(r"\b1e309\b", "1e30", found)
    return None if found == text else Edit(node, found)


_NOTHING = frozenset({
    "unsqueeze", "squeeze", "contiguous", "detach", "clone", "cpu", "transpose", "permute", "expand", "expand_as",
    "broadcast_to", "view_as", "t", "type_as", "requires_grad_", "double", "swapaxes", "movedim",
})  # fmt: skip


def no_method(place: Place) -> Edit | None:
    """VF023: what names make needless goes; what is a function of `ops` becomes one; near names become the name."""
    name, node = str(place.facts["name"]), place.node
    if name == "@":
        shared = [d for d in place.facts["a"] if d in place.facts["b"] and d not in ("page", "head")]
        if not isinstance(node, ast.BinOp) or not shared:
            return None
        dim = "dim" if "dim" in shared else shared[-1]
        return Edit(node, f'ops.dot({text_of(node.left)}, {text_of(node.right)}, "{dim}")')
    if not isinstance(node, ast.Attribute):
        return None
    parent = getattr(node, "parent", None)
    call = parent if isinstance(parent, ast.Call) and parent.func is node else None
    if name in ("values", "T", "mT", "data", "real"):
        return Edit(node, text_of(node.value))
    if name == "shape" and isinstance(parent, ast.Subscript):
        index = (
            ast.literal_eval(parent.slice) if isinstance(parent.slice, ast.Constant | ast.UnaryOp) else None
        )
        dims = place.facts["dims"]
        if isinstance(index, int) and -len(dims) <= index < len(dims):
            return Edit(parent, f'{receiver(node.value)}.size("{dims[index]}")')
        return None
    if call is not None and name in _NOTHING:
        return Edit(call, text_of(node.value))
    if call is not None and name in ("bfloat16", "half"):
        return Edit(call, f'{receiver(node.value)}.to("{"bf16" if name == "bfloat16" else "fp16"}")')
    if call is not None and name in ("topk", "topp", "threshold", "where"):
        rest = "" if name == "topk" else "".join(f", {text_of(a)}" for a in call.args)
        return Edit(call, f"ops.{name}({text_of(node.value)}{rest})")
    near = close(name, str(place.facts["near"]).split(", "))
    return None if near is None else Edit(node, f"{receiver(node.value)}.{near}")


def no_values(place: Place) -> Edit | None:
    """VF065: values that nobody supplies become fixed random signs of the same dimensions."""
    call = place.call
    if call is None or "no values" not in str(place.facts["why"]) or not call.args:
        return None
    axes = [k for k in call.keywords if k.arg not in ("layer", "kv_head")]
    seed = sum(map(ord, str(place.facts["name"]))) % 1000
    inside = ", ".join([*map(text_of, axes), f"seed={seed}"])
    return Edit(call, f"ops.signs({inside})") if len(axes) == 2 else None


_OPERATORS = {
    "concatenate": "concat", "cat": "concat", "hstack": "concat", "top_k": "topk", "top_p": "topp", "select": "topk",
    "full": "constant", "tensor": "constant", "scalar": "constant", "num_pages": "pages", "seq_len": "length",
    "positions": "position", "page_index": "position", "attention_mass": "mass", "dim": "size",
    "layer_mass": "dense_mass",
}  # fmt: skip


def no_operator(place: Place) -> Edit | None:
    """VF024: other libraries' names and near names become the name."""
    name, node, call = str(place.facts["name"]), place.node, place.call
    if not isinstance(node, ast.Attribute):
        return None
    known = [n.strip() for n in str(place.facts["near"]).split(",")]
    if call is not None and call.func is node and place.facts["where"] == "ops":
        if name in ("matmul", "bmm", "mm", "inner") and len(call.args) == 2:
            return Edit(call, f'ops.dot({text_of(call.args[0])}, {text_of(call.args[1])}, "dim")')
        if name in ("zeros_like", "ones_like") and call.args:
            return Edit(call, f"(0 * {receiver(call.args[0])}{' + 1' if name == 'ones_like' else ''})")
    near = _OPERATORS.get(name) if place.facts["where"] == "ops" else None
    near = near or close(name, known)
    return None if near is None else Edit(node, f"{text_of(node.value)}.{near}")


def bad_flow_name(place: Place) -> Edit | None:
    """VF025: the name with what may not be in it left out."""
    for call in place.calls("register"):
        if call.args and isinstance(call.args[0], ast.Constant):
            plain = re.sub(r"[^A-Za-z0-9_-]+", "_", str(call.args[0].value)).strip("_-0123456789")[:64]
            return Edit(call.args[0], f'"{plain or "flow"}"')
    return None
