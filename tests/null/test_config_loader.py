"""The loader behind every configuration file: strict YAML, `extends`, and where each value came from."""

from __future__ import annotations

from pathlib import Path

import pytest

from vortex_core.configs import ConfigFolder, Layer, Strict
from vortex_core.errors import VortexError

FOLDER = ConfigFolder("campaigns", "menu", unknown="VT001", invalid="VT002")


class Sauce(Strict):
    name: str = "none"
    grams: int = 10


class Menu(Strict):
    dish: str
    sauce: Sauce = Sauce()
    sides: tuple[str, ...] = ()
    price: float | None = None


def write(folder: Path, **files: str) -> str:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return str(folder / "mine.yaml")


def refused(path: str) -> str:
    with pytest.raises(VortexError) as caught:
        FOLDER.load(path, Menu)
    assert caught.value.code == "VT002"
    return caught.value.message


def test_an_extending_file_states_only_what_differs(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        base="dish: soup\nsauce: {name: pesto, grams: 20}\nsides: [bread, salad]\nprice: 3\n",
        middle="extends: base.yaml\nsides: [rice]\nsauce: {grams: 30}\n",
        mine="extends: middle.yaml\nprice: null\n",
    )
    found = FOLDER.read(path, Menu)
    assert found.value == Menu(dish="soup", sauce=Sauce(name="pesto", grams=30), sides=("rice",), price=None)
    where = {
        k: Path(found.source_of(k)).stem for k in ("dish", "sauce.name", "sauce.grams", "sides", "price")
    }
    assert where == {
        "dish": "base",
        "sauce.name": "base",
        "sauce.grams": "middle",
        "sides": "middle",
        "price": "mine",
    }
    assert [Path(layer.source).stem for layer in found.layers] == ["base", "middle", "mine"]


def test_what_nobody_set_is_a_default(tmp_path: Path) -> None:
    found = FOLDER.read(write(tmp_path, mine="dish: soup\n"), Menu)
    assert found.source_of("sauce.grams") == "default"
    assert found.value.sauce.grams == 10


def test_layers_lie_over_the_files(tmp_path: Path) -> None:
    path = write(tmp_path, mine="dish: soup\nsauce: {name: pesto}\n")
    found = FOLDER.read(path, Menu, over=[Layer("command line", {"sauce": {"grams": 5}, "dish": "stew"})])
    assert (found.value.dish, found.value.sauce) == ("stew", Sauce(name="pesto", grams=5))
    assert found.source_of("dish") == "command line"
    assert found.source_of("sauce.name") == path


def test_a_section_replaced_by_a_value_leaves_no_sources(tmp_path: Path) -> None:
    path = write(tmp_path, base="dish: soup\nsauce: {grams: 20}\n", mine="extends: base.yaml\nsauce: pesto\n")
    assert "sauce" in refused(path)


def test_a_circle_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, mine="extends: other.yaml\n", other="extends: mine.yaml\n")
    assert "mine.yaml -> other.yaml -> mine.yaml" in refused(path)


def test_a_shipped_name_can_be_extended(tmp_path: Path) -> None:
    path = write(tmp_path, mine="extends: quik\n")
    with pytest.raises(VortexError) as caught:
        FOLDER.load(path, Menu)
    assert caught.value.code == "VT001"
    assert "did you mean quick" in caught.value.remedy
    assert "description" in refused(write(tmp_path, mine="extends: quick\n"))  # a campaign is no menu


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dish: soup\ndish: stew\n", "'dish' stands twice"),
        ("dish: soup\nsauce: {grams: 1, grams: 2}\n", "'grams' stands twice"),
        ("dish: soup\nsoss: {}\n", "soss"),
        ("dish: soup\nsauce: {grams: many}\nsides: 3\n", "sauce.grams: .*; sides: "),
        ("[soup]\n", "a list instead of keys"),
        ("dish: [", "not YAML"),
        ("extends: [a, b]\n", "give one name or path"),
        ("extends: absent.yaml\n", "No such file"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, text: str, said: str) -> None:
    import re

    assert re.search(said, refused(write(tmp_path, mine=text)))


def test_an_error_in_a_base_names_the_base(tmp_path: Path) -> None:
    path = write(tmp_path, base="dish: soup\nprice: dear\n", mine="extends: base.yaml\nsides: [bread]\n")
    assert "price: " in refused(path)
    assert "(set in " in refused(path) and "base.yaml)" in refused(path)


def test_anchors_and_merge_keys_still_work(tmp_path: Path) -> None:
    text = "dish: soup\nsauce: &s {name: pesto}\n"
    assert FOLDER.load(write(tmp_path, mine=text), Menu).sauce.name == "pesto"
