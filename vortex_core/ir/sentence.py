"""A program in English, generated from its IR: what a page remembers, how a page is scored, which pages are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from vortex_core.ir.program import Program
from vortex_core.ir.terms import Term, account, uses

_LONG = 150  # characters of a phrase that gets a name
_SHORT = 50  # of one that is said again instead
_ALONG = {"page": "pages", "head": "query heads", "token": "tokens", "dim": "channels", "row": "rows"}
_SOURCES = {
    "q": "the query", "k": "the keys", "v": "the values", "position": "the page's number",
    "rotary": "the rotary frequency", "pages": "the number of pages", "length": "the number of tokens",
    "mass": "the attention mass that the page received in the last step",
    "dense_mass": "the attention mass that the page receives in the dense layer before",
}  # fmt: skip
_SIZES = {"G": "query heads of the group", "D": "channels", "N": "unrotated channels", "R": "rotary channels",
          "S": "tokens of a page", "P": "pages"}  # fmt: skip
_REDUCED = {"sum": "the sum", "mean": "the mean", "amax": "the largest value", "amin": "the smallest value",
            "softmax": "the softmax", "cumsum": "the running sum"}  # fmt: skip
_UNARY = {
    "neg": "minus {}", "exp": "the exponential of {}", "log": "the logarithm of {}", "sqrt": "the square root of {}",
    "abs": "the absolute value of {}", "sigmoid": "the logistic function of {}", "tanh": "the hyperbolic tangent of {}",
    "sign": "the sign of {}", "floor": "{} rounded down", "not": "not {}",
}  # fmt: skip
_BINARY = {
    "add": "{} plus {}", "sub": "{} minus {}", "mul": "{} times {}", "div": "{} divided by {}",
    "maximum": "the larger of {} and {}", "minimum": "the smaller of {} and {}", "lt": "{} is less than {}",
    "le": "{} is at most {}", "eq": "{} equals {}", "and": "{} and {}", "or": "{} or {}",
    "concat": "{} followed by {}",
}  # fmt: skip


def sentences(program: Program, labels: Mapping[str, str] | None = None) -> list[str]:
    """What a program does, in whole sentences; the last one says which pages a step reads.

    Args:
        program: any verified program.
        labels: what its states are called; by default their own names.
    """
    found = account(program, labels)
    said: list[str] = []
    first = _Speaker(uses(*(d.term for d in found.cache)), said)
    for definition in found.cache:
        words = first.phrase(definition.term, top=True)
        said.append(f"For every completed page it keeps {definition.name}: {words}.")
    second = _Speaker(uses(found.selection, *(d.term for d in found.index)), said, len(first.names))
    for definition in found.index:
        words = second.phrase(definition.term, top=True)
        said.append(f"After every decode step {definition.name} becomes {words}.")
    said.append(second.selection(found.selection))
    return said


def _along(dims: tuple[str, ...]) -> str:
    return " and ".join(_ALONG.get(d, d) for d in dims)


class _Speaker:
    """Phrases of one stage; what is shared or long is said once, under a name."""

    def __init__(self, counts: Counter[int], said: list[str], numbered: int = 0) -> None:
        self.counts, self.said, self.numbered = counts, said, numbered
        self.names: dict[int, str] = {}

    def phrase(self, term: Term, *, top: bool = False) -> str:
        """A noun phrase for a value."""
        if id(term) in self.names:
            return self.names[id(term)]
        words = self._words(term)
        if not term.args or top:
            return words
        shared = self.counts[id(term)] > 1 and len(words) > _SHORT
        if shared or len(words) > _LONG:
            name = f"x{self.numbered + len(self.names) + 1}"
            self.names[id(term)] = name
            self.said.append(f"Let {name} be {words}.")
            return name
        return words

    def _words(self, term: Term) -> str:
        a = term.attr
        if term.op in _SOURCES:
            return _SOURCES[term.op]
        if term.op in _UNARY:
            return _UNARY[term.op].format(self.phrase(term.args[0]))
        if term.op in _BINARY:
            return _BINARY[term.op].format(*(self._operand(x) for x in term.args))
        match term.op:
            case "const":
                return "minus infinity" if a["value"] <= -1e29 else f"{a['value']:.4g}"
            case "extent":
                symbol = str(a["extent"])
                return f"the number of {_SIZES[symbol]}" if symbol in _SIZES else symbol
            case "iota":
                return f"the number of the {a['dim']}"
            case "load":
                return f"its {a['name']}" if "page" in term.dims else f"the request's {a['name']}"
            case "param":
                return f"the learned {a['name']}"
            case "sum" if term.args[0].op == "mul" and a["dims"] == ("dim",):
                left, right = (self.phrase(x) for x in term.args[0].args)
                return f"the dot product of {left} and {right}"
            case "sum" | "mean" | "amax" | "amin":
                return f"{_REDUCED[term.op]} over {_along(a['dims'])} of {self.phrase(term.args[0])}"
            case "softmax" | "cumsum":
                return f"{_REDUCED[term.op]} over {_along((a['dim'],))} of {self.phrase(term.args[0])}"
            case "where":
                mask, yes, no = (self.phrase(x) for x in term.args)
                return f"{yes} where {mask}, else {no}"
            case "conv":
                weights = f"with {len(a['weights'])} weights"
                return f"{self.phrase(term.args[0])} filtered along {_along((a['dim'],))} {weights}"
            case "maxpool":
                return f"the largest of {a['size']} neighbouring {_along((a['dim'],))} of {self.phrase(term.args[0])}"
            case "largest":
                return f"being among the {a['k']} largest along {_along((a['dim'],))} of {self.phrase(term.args[0])}"
            case "principal":
                rows, inner = _along((a["over"],)), self.phrase(term.args[0])
                return f"the {a['rank']} {_along((a['dim'],))} directions in which the {rows} of {inner} spread most"
            case "slice":
                return f"{_along((a['dim'],))} {a['start']} to {a['stop']} of {self.phrase(term.args[0])}"
            case "channels":
                which = {"rope": "rotary", "nope": "unrotated"}.get(a["group"], a["group"])
                return f"the {which} channels of {self.phrase(term.args[0])}"
            case "split":
                groups = f"{a['parts']} groups of consecutive {_along((a['dim'],))}"
                return f"{self.phrase(term.args[0])} in {groups}"
            case "rename":
                return self.phrase(term.args[0])
            case "cast":
                return f"{self.phrase(term.args[0])} rounded to {a['dtype']}"
        raise AssertionError(f"no words for {term.op}")

    def _operand(self, term: Term) -> str:
        """Of an infix phrase: what is infix itself stands in brackets."""
        words = self.phrase(term)
        return f"({words})" if term.args and id(term) not in self.names else words

    def selection(self, term: Term) -> str:
        """The sentence on what a step reads."""
        if term.op == "everything":
            return "Every decode step reads all pages: this is dense attention."
        if term.op == "residual":
            chosen, mass, value = term.args
            words = f"one entry of value {self.phrase(value)} and of log weight {self.phrase(mass)}"
            return f"{self.selection(chosen)} Every other complete page counts as {words}."
        words = " and ".join(self._chosen(t) for t in _streams(term))
        return f"Every decode step reads, for each sequence and kv head, {words}."

    def _chosen(self, term: Term) -> str:
        a, score = term.attr, self.phrase(term.args[-1], top=True)
        budget = "the budget" if a.get("fraction") is None else f"{a['fraction']:.0%} of the budget"
        shared = "" if a.get("share") is None else f", one choice for all kv heads by their {a['share']}"
        near = "" if a.get("recall") is None else f", found with a recall of at least {a['recall']:g}"
        match term.op:
            case "refine":
                first = f"of the {a['candidates']} times as many that are best by {self.phrase(term.args[0], top=True)}"
                return f"{first} the best pages within {budget}, a page being scored by {score}"
            case "topk":
                return f"the best pages within {budget}{shared}{near}, a page being scored by {score}"
            case "topp":
                return (
                    f"the fewest pages whose softmax mass reaches {a['p']:g}, at most {budget}{shared}, a page being "
                    f"scored by {score}"
                )
        return f"the pages that score at least {a['at']:g}, at most {budget}{shared}, a page being scored by {score}"


def _streams(term: Term) -> list[Term]:
    return [t for x in term.args for t in _streams(x)] if term.op == "union" else [term]
