"""The registry behind every extension point."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from vortex_core.errors import VortexError
from vortex_core.registry import Registry

GROUP = "vortex_search.test_registry"


@pytest.fixture
def registry() -> Registry[object]:
    ours = {"loads": "json:loads", "dumps": "json:dumps", "absent": "no_such_module_anywhere:thing"}
    return Registry("codec", ours, group=GROUP, code="VT001")


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, distribution: str, points: str) -> None:
    """Put a distribution with entry points on the path, as pip would."""
    info = folder / distribution / f"{distribution}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{points}\n")
    monkeypatch.setattr(sys, "path", [str(folder / distribution), *sys.path])


def test_names_come_in_order_and_import_nothing(registry: Registry[object]) -> None:
    assert registry.names() == ("loads", "dumps", "absent")


def test_get_imports(registry: Registry[object]) -> None:
    import json

    assert registry.get("loads") is json.loads


def test_a_missing_module_of_ours_is_not_hidden(registry: Registry[object]) -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_module_anywhere"):
        registry.get("absent")


def test_unknown_names_list_near_misses_and_all(registry: Registry[object]) -> None:
    with pytest.raises(VortexError) as caught:
        registry.get("load")
    assert caught.value.code == "VT001"
    assert "did you mean loads" in caught.value.remedy
    assert "loads, dumps, absent" in caught.value.remedy


def test_another_distribution_adds_a_name(
    registry: Registry[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import base64

    install(tmp_path, monkeypatch, "acme", "b64 = base64:b64encode")
    assert registry.names() == ("loads", "dumps", "absent", "b64")
    assert registry.get("b64") is base64.b64encode


def test_a_broken_entry_point_is_named(
    registry: Registry[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, "acme", "broken = json:nothing")
    with pytest.raises(VortexError, match=r"'broken' \(json:nothing\)") as caught:
        registry.get("broken")
    assert caught.value.code == "VX001"


def test_a_name_given_twice_is_refused(
    registry: Registry[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, "acme", "loads = pickle:loads")
    with pytest.raises(VortexError, match="pickle:loads and by json:loads") as caught:
        registry.get("loads")
    assert caught.value.code == "VX002"
