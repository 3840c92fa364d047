"""The local page: it reads, answers this machine only, and shows foreign text as text."""

from __future__ import annotations

from pathlib import Path

import pytest

starlette = pytest.importorskip(
    "starlette.testclient", reason="starlette is not installed (pip install '.[ui]')"
)

from search.live.app import build  # noqa: E402
from search.log import events as ev  # noqa: E402
from search.log.run import open_run  # noqa: E402
from tests.synthetic_runs import write_run  # noqa: E402


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("runs")
    write_run(root, "one", 24, hostile=True)
    write_run(root, "open", 12, finish=False)
    with starlette.TestClient(build(root), base_url="http://127.0.0.1") as found:
        found.root = root
        yield found


def test_runs_are_listed_with_how_far_they_are(client) -> None:
    page = client.get("/")
    assert page.status_code == 200
    assert "/runs/one/" in page.text and "finished (candidates)" in page.text and "searching" in page.text


def test_a_report_grows_with_its_run(client) -> None:
    before = client.get("/runs/open/seq").json()["seq"]
    assert f'data-live="{before}"' in client.get("/runs/open/").text
    with open_run("open", readonly=False, root=Path(client.root)) as run:
        run.store.append(ev.CampaignPaused("a pause"))
    assert client.get("/runs/open/seq").json()["seq"] == before + 1
    assert f'data-live="{before + 1}"' in client.get("/runs/open/").text


def test_two_runs_side_by_side(client) -> None:
    assert (
        "paired" in client.get("/compare?a=one&b=open").text.lower()
        or "against" in client.get("/compare?a=one&b=open").text
    )


@pytest.mark.parametrize("host", ["evil.example", "169.254.169.254", "[::ffff:1.2.3.4]"])
def test_other_names_are_refused(client, host: str) -> None:
    assert client.get("/", headers={"host": host}).status_code == 400


@pytest.mark.parametrize("method", ["post", "put", "delete", "patch"])
def test_nothing_can_be_changed(client, method: str) -> None:
    assert getattr(client, method)("/runs/one/").status_code == 405


@pytest.mark.parametrize(
    "path", ["/runs/../../etc/", "/runs/%2e%2e%2f%2e%2e/", "/runs/none/", "/compare?a=%3Cscript%3E&b=one"]
)
def test_bad_names_are_told_and_stay_text(client, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code in (400, 404)
    assert "<script>" not in answer.text


def test_answers_may_load_nothing_and_be_framed_nowhere(client) -> None:
    policy = client.get("/runs/one/").headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    assert "onerror=alert(1)>" not in client.get("/runs/one/").text
