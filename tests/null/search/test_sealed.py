from __future__ import annotations

from pathlib import Path

import pytest

from search.log.run import SECRET, sealed_secret
from vortex_core.errors import VortexError


def test_a_run_draws_its_sealed_items_once(tmp_path: Path) -> None:
    folders = [tmp_path / str(i) for i in range(5)]
    for folder in folders:
        folder.mkdir()
    drawn = [sealed_secret(folder, 1_000_000) for folder in folders]
    assert [sealed_secret(folder, 1_000_000) for folder in folders] == drawn
    assert len(set(drawn)) > 1  # nobody's seed decides them
    assert (folders[0] / SECRET).stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("content", ["", "x", "-1", "1000000"])
def test_a_spoilt_secret_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / SECRET).write_text(content)
    with pytest.raises(VortexError) as caught:
        sealed_secret(tmp_path, 1_000_000)
    assert caught.value.code == "VS005"
