"""The JSON beside a vortex_torch program, read as knobs."""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vortex_core.errors import VortexError
from vortex_core.ir import mistakes
from vortex_core.ir.knobs import KV_DTYPES, Knobs

# Defaults of its VortexConfig.
_OURS: dict[str, Any] = {
    "topk_val": 30,
    "topk_ratio": 0.0,
    "layers_skip": None,
    "block_reserved_bos": 1,
    "block_reserved_eos": 1,
    "block_size": 16,
    "dtype": "bfloat16",
    "schedule_policy": None,
    "module_name": None,
}
_ALIASES = {
    "page_size": "block_size",
    "page_reserved_bos": "block_reserved_bos",
    "page_reserved_eos": "block_reserved_eos",
}
# How that engine runs, not what is selected.
_ENGINE = {
    "max_topk_val", "max_seq_lens", "workload_chunk_size", "module_path", "compilation_cache_dir",
    "attention_backend", "impl_backend", "use_tensor_core", "host_kv_gb", "host_kv_pool_blocks",
    "host_kv_policy", "topk_type", "sparsity",
}  # fmt: skip
_SHAPES = {"head_dim", "group", "kv_lora_rank", "qk_rope_head_dim", "kv_cache_dtype"}
_DTYPES = {
    "bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "fp8_e4m3": "fp8_e4m3", "fp8_e5m2": "fp8_e5m2",
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What the JSON says about selection, and the model shapes a program is checked for.

    Attributes:
        block_size: tokens per block.
        topk_val: blocks chosen by score.
        topk_ratio: least share of all blocks to attend.
        bos, eos: first and last blocks always attended.
        layers_skip: dense layers.
        state_dtype: storage of every field.
        kv_dtype: storage of K and V.
        policy: C++ snippet that overrides the budget.
        module_name: registered name of the flow, where a file has several.
        is_mla: whether the flow is a vFlowMLA.
        sizes: concrete extents used to check shapes; programs stay symbolic.
    """

    block_size: int
    topk_val: int
    topk_ratio: float
    bos: int
    eos: int
    layers_skip: tuple[int, ...]
    state_dtype: str
    kv_dtype: str
    policy: str | None
    module_name: str | None
    is_mla: bool
    sizes: Mapping[str, int]

    @classmethod
    def read(cls, options: Mapping[str, Any] | None, is_mla: bool) -> Settings:
        """From the JSON object, with or without the `vortex_` prefix; `None` is its defaults.

        `head_dim` and `group` (query heads per kv head) say which model the shapes are checked for; they
        default to 128 and 5, for MLA (`kv_lora_rank`, `qk_rope_head_dim`) to 512 + 64 and 20.

        Raises:
            VortexError: `VF087`.
        """
        given = dict(options or {})
        nested = given.pop("vortex", None)
        if isinstance(nested, Mapping):
            given.update(nested)
        known, named = dict(_OURS), dict[str, str]()
        for key, value in given.items():
            plain = key.removeprefix("vortex_")
            if key != "page_size":  # without the prefix it is its server's
                plain = _ALIASES.get(plain, plain)
            if plain in known:
                if plain in named:
                    raise _error(key, value, f"it is given once, not as {named[plain]} too")
                known[plain], named[plain] = value, key
            elif plain == "kv_int4" and value:
                raise mistakes.DIALECT_NO_EQUIVALENT.error(
                    what="vortex_kv_int4",
                    why="keys and values are stored as bf16 or fp8 here",
                    remedy="remove it, or use kv_cache_dtype fp8_e4m3",
                )
            elif plain not in _ENGINE | _SHAPES | {"kv_int4"}:
                # Without the prefix it may be an option of its server, unless it looks like a slip of the hand.
                ours = key.startswith("vortex_")
                among = [*known, *_ENGINE] if ours else known
                near = difflib.get_close_matches(plain[:100], among, 1, 0.6 if ours else 0.85)
                if ours or near:
                    raise _error(
                        key, value, f"it is no setting; did you mean vortex_{near[0]}?" if near else "unknown"
                    )
        rope = _whole(given, "qk_rope_head_dim", 64, 1)
        latent = _whole(given, "kv_lora_rank", 512, 1)
        dim = latent + rope if is_mla else _whole(given, "head_dim", 128, 1)
        block = _whole(known, "block_size", 16, 1)
        sizes = {
            "G": _whole(given, "group", 20 if is_mla else 5, 1),
            "D": dim,
            "S": block,
            "R": rope if is_mla else dim,
            "N": latent if is_mla else 1,
        }
        dtype = str(known["dtype"]).removeprefix("torch.")
        if dtype not in _DTYPES:
            raise _error("vortex_dtype", dtype, f"it is one of {', '.join(_DTYPES)}")
        kv = given.get("kv_cache_dtype", "auto")
        kv = {"bfloat16": "bf16"}.get(kv, kv)
        if kv not in KV_DTYPES:
            raise _error("kv_cache_dtype", kv, f"it is one of {', '.join(KV_DTYPES)}")
        ratio = known["topk_ratio"]
        if not isinstance(ratio, int | float) or isinstance(ratio, bool) or not 0.0 <= ratio <= 1.0:
            raise _error("vortex_topk_ratio", ratio, "it is a number from 0 to 1")
        skip = [] if known["layers_skip"] is None else known["layers_skip"]
        if not isinstance(skip, list | tuple) or not all(isinstance(n, int) for n in skip):
            raise _error("vortex_layers_skip", skip, "it is a list of layer numbers")
        return cls(
            block,
            _whole(known, "topk_val", 30, 0),
            float(ratio),
            _whole(known, "block_reserved_bos", 1, 0),
            _whole(known, "block_reserved_eos", 1, 1),
            tuple(skip),
            _DTYPES[dtype],
            kv,
            known["schedule_policy"],
            known["module_name"],
            is_mla,
            sizes,
        )

    def knobs(self, streams: list[int]) -> Knobs:
        """Our knobs. `streams`: block counts of `TopK(k)`, which replace topk_val."""
        chosen = sum(streams) if streams else self.topk_val
        blocks = self.bos + self.eos + chosen
        tokens = str(blocks * self.block_size)
        if self.policy is not None:
            pages = translate_policy(self.policy, self)
            tokens = f"{self.block_size} * ({pages})"
        elif self.topk_ratio > 0.0 and not streams:
            tokens = f"max({tokens}, {self.topk_ratio:g} * length)"
        return Knobs(
            page_size=self.block_size,
            budget=tokens,
            keep_first=self.bos,
            keep_last=self.eos,
            dense_layers=self.layers_skip,
            kv_dtype=self.kv_dtype,
        )


def _whole(found: Mapping[str, Any], name: str, default: int, least: int) -> int:
    value = found.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise _error(name, value, f"it is a whole number from {least}")
    return value


def _error(name: str, value: object, why: str) -> VortexError:
    return mistakes.DIALECT_KNOB.error(name=name, value=value, why=why)


# ---- schedule_policy --------------------------------------------------------------------------------

_STATEMENT = re.compile(
    r"\s*(?:(?:const\s+)?(?:int|float|double|auto|int32_t)\s+(?:const\s+)?(\w+)\s*=|(return)\b)"
)


def translate_policy(text: str, settings: Settings) -> str:
    """A budget in pages from a C++ snippet of declarations and one return, with its integer division.

    Raises:
        VortexError: `VF087` for anything else: loops, conditions, calls other than min and max.
    """
    text = re.sub(r"//[^\n]*|/\*.*?\*/", " ", text, flags=re.DOTALL)
    names: dict[str, tuple[str, bool]] = {
        "cached_block_len": (f"ceil(length / {settings.block_size})", True),
        "topk_val": (str(settings.topk_val), True),
        "topk_ratio": (f"{settings.topk_ratio:g}", False),
        "block_reserved_bos": (str(settings.bos), True),
        "block_reserved_eos": (str(settings.eos), True),
    }
    statements = [s for s in text.split(";") if s.strip()]
    for position, statement in enumerate(statements):
        match = _STATEMENT.match(statement)
        if match is None:
            raise _error(
                "vortex_schedule_policy", statement.strip(), "only declarations and one return are read"
            )
        name, is_return = match.groups()
        whole_type = (
            bool(is_return) or re.match(r"\s*(?:const\s+)?(?:int|int32_t|auto)\b", statement) is not None
        )
        expression, whole = _c_expression(statement[match.end() :], names)
        if whole_type and not whole and not re.match(r"\s*(?:const\s+)?auto\b", statement):
            expression, whole = f"floor({expression})", True
        if is_return:
            if position != len(statements) - 1:
                raise _error("vortex_schedule_policy", statement.strip(), "one return, and it comes last")
            return expression
        names[name] = (f"({expression})", whole)
    raise _error("vortex_schedule_policy", text.strip(), "it returns nothing")


def _c_expression(text: str, names: dict[str, tuple[str, bool]]) -> tuple[str, bool]:
    """A Python expression over `length`, and whether it is an integer in C."""
    cleaned = re.sub(r"static_cast<\s*(\w+)\s*>\s*\(", r"\1(", re.sub(r"\bstd::", "", text))
    cleaned = re.sub(
        r"\(\s*(int|float|double)\s*\)\s*(?=[\w(])", r"\1 ** ", cleaned
    )  # a cast binds like no operator here
    cleaned = re.sub(r"(\d\.?\d*|\.\d+)f\b", r"\1", cleaned)
    try:
        tree = ast.parse(cleaned.strip(), mode="eval").body
        return _convert(tree, names)
    except (SyntaxError, KeyError, ValueError) as error:
        why = (
            f"{error} is not available"
            if isinstance(error, KeyError)
            else "it is no sum, product, min or max"
        )
        raise _error("vortex_schedule_policy", text.strip(), why) from None


def _convert(node: ast.expr, names: dict[str, tuple[str, bool]]) -> tuple[str, bool]:
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return f"{value:g}" if isinstance(value, float) else str(value), isinstance(value, int)
        case ast.Name(id=name):
            return names[name]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            text, whole = _convert(operand, names)
            return f"-({text})", whole
        case ast.BinOp(left=ast.Name(id="int" | "float" | "double" as kind), op=ast.Pow(), right=right):
            text, whole = _convert(right, names)
            return (text if whole else f"floor({text})", True) if kind == "int" else (text, False)
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub() | ast.Mult() | ast.Div() as op, right=right):
            (a, whole_a), (b, whole_b) = _convert(left, names), _convert(right, names)
            whole = whole_a and whole_b
            symbol = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}[type(op)]
            text = f"({a} {symbol} {b})"
            # Operands are counts, so truncation is the floor.
            return (f"floor{text}" if whole and symbol == "/" else text), whole
        case ast.Call(func=ast.Name(id="min" | "max" as name), args=args, keywords=[]) if len(args) >= 2:
            parts = [_convert(a, names) for a in args]
            return f"{name}({', '.join(t for t, _ in parts)})", all(w for _, w in parts)
        case ast.Call(func=ast.Name(id="int" | "float" | "double" as kind), args=[inner], keywords=[]):
            text, whole = _convert(inner, names)
            return (text if whole else f"floor({text})", True) if kind == "int" else (text, False)
        case ast.Call(
            func=ast.Name(id="ceil" | "floor" | "ceilf" | "floorf" as name), args=[inner], keywords=[]
        ):
            text, _ = _convert(inner, names)
            return f"{name.removesuffix('f')}({text})", False
    raise ValueError(ast.unparse(node))
