from __future__ import annotations

import textwrap

import pytest

from agents.reply import MAX_SOURCE, extract

FLOW = '''from vortex_core import ops, register, vFlow


@register("a")
class A(vFlow):
    """Scores pages by their mean key."""

    def forward_indexer(self, q, cache):
        return ops.topk(cache["mean"])
'''
OTHER = FLOW.replace('"a"', '"b"').replace("class A", "class B")
BROKEN = FLOW.replace("return ops.topk(cache", "return ops.topk((cache")
FENCE = "```"


def source(text: str) -> str | None:
    found = extract(text)
    return None if found is None else found.source


@pytest.mark.parametrize(
    "text",
    [
        f"{FENCE}python\n{FLOW}{FENCE}",
        f"Sure!\n\nIDEA: x\n{FENCE}py\n{FLOW}\n\n{FENCE}\nHope this helps.",
        f"{FENCE}\n{FLOW}{FENCE}\n",
        f"~~~python\n{FLOW}~~~",
        f"````python\n{FLOW}````",
        f"{FENCE}python title=flow.py\n{FLOW}{FENCE}",
        f"{FENCE}python\r\n{FLOW}{FENCE}".replace("\n", "\r\n"),
        f"First a helper:\n{FENCE}python\nx = 1\n{FENCE}\nnow the flow:\n{FENCE}python\n{FLOW}{FENCE}",
        f"{FENCE}python\n{FLOW}{FENCE}\nRun it with:\n{FENCE}bash\nvortex-search check a.py\n{FENCE}",
        f"{FENCE}python\n{OTHER}{FENCE}\nBetter:\n{FENCE}python\n{FLOW}{FENCE}",
        f"{FENCE}python\n{BROKEN}{FENCE}\nthat was wrong\n{FENCE}python\n{FLOW}{FENCE}",
        f"{FENCE}python\n{FLOW}{FENCE}\nand a wrong one\n{FENCE}python\n{BROKEN}{FENCE}",
        f"<think>maybe\n{FENCE}python\n{OTHER}{FENCE}\n</think>\n{FENCE}python\n{FLOW}{FENCE}",
        f"maybe\n{FENCE}python\n{OTHER}{FENCE}\n</think>\n{FENCE}python\n{FLOW}{FENCE}",
        FLOW,
        f"Here is the program.\n\n{FLOW}\nIt scores pages by their mean, which is cheap.\nGood luck!",
    ],
)
def test_finds_the_program(text: str) -> None:
    assert source(text) == FLOW


@pytest.mark.parametrize("width", [0, 2, 3, 4, 8])
def test_a_fence_in_a_list_is_one(width: int) -> None:
    block = textwrap.indent(f"{FENCE}python\n{FLOW}{FENCE}", " " * width)
    assert source(f"1. Here it is:\n\n{block}\n2. It is cheap.") == FLOW


@pytest.mark.parametrize("mark", ["- ", "* ", "10. ", "3)  "])
def test_a_fence_behind_the_mark_of_a_list_is_one(mark: str) -> None:
    block = textwrap.indent(f"{FLOW}{FENCE}", " " * len(mark))
    assert source(f"{mark}{FENCE}python\n{block}\n{mark}next") == FLOW


def test_docstring_may_hold_a_fence() -> None:
    flow = FLOW.replace("mean key.", f"mean key.\n\n    For example:\n{FENCE}\nx = 1\n{FENCE}\n    ")
    assert source(f"{FENCE}python\n{flow}{FENCE}\n") == flow


def test_a_program_that_does_not_parse_is_kept_for_repair() -> None:
    assert source(f"{FENCE}python\n{BROKEN}{FENCE}") == BROKEN
    assert source(f"Here:\n{BROKEN}") == BROKEN


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I cannot help with that.",
        f"{FENCE}python\nprint('hello')\n{FENCE}",
        f"{FENCE}json\n{{}}\n{FENCE}",
        "A vFlow has three methods.",
        f"{FENCE}python\n{FLOW}{'# padding' * MAX_SOURCE}\n{FENCE}",
        f"<think>{FENCE}python\n{FLOW}{FENCE}</think>I give up.",
    ],
)
def test_no_program(text: str) -> None:
    assert extract(text) is None


def test_a_block_that_is_cut_off_is_not_complete() -> None:
    cut = extract(f"{FENCE}python\n{FLOW}")
    whole = extract(f"{FENCE}python\n{FLOW}{FENCE}")
    assert cut is not None
    assert whole is not None
    assert (cut.complete, whole.complete) == (False, True)


@pytest.mark.parametrize(
    ("before", "idea"),
    [
        ("IDEA: means are enough\n", "means are enough"),
        ("**Idea:** means are enough\n", "means are enough"),
        ("Here you are.\n", "Scores pages by their mean key."),
        ("IDEA: a\x1b[31mred\u202e\n", "a[31mred"),
        (f"IDEA: {'long ' * 100}\n", ("long " * 100)[:197] + "..."),
    ],
)
def test_idea_is_one_plain_line(before: str, idea: str) -> None:
    found = extract(f"{before}{FENCE}python\n{FLOW}{FENCE}")
    assert found is not None
    assert found.idea == idea


def test_hidden_characters_do_not_reach_the_source() -> None:
    hidden = "\u202e\u200b\U000e0041\ud800\x1b"
    assert source(f"{FENCE}python\n{FLOW.replace('mean key', 'mean' + hidden + ' key')}{FENCE}") == FLOW


def test_nesting_without_end_is_no_crash() -> None:
    deep = f"class A(vFlow):\n    x = {'(' * 20_000}"
    assert source(f"{FENCE}python\n{deep}\n{FENCE}") == deep + "\n"
