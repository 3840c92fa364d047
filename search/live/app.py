"""A page on the loopback: runs, a run's report as it grows, two runs side by side. It reads, and nothing else.

Built on Starlette. Only names of this machine are answered (a page elsewhere cannot reach it through a name of its
own), only GET, and no answer may be framed or load anything.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import jinja2
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from search.campaign.archive import Archive
from search.commands.compare import compare_runs
from search.live.follow import Follower, stage_of
from search.log.run import campaign_of, open_run, run_names, runs_root
from search.report.page import render
from search.tables import metric
from vortex_core.errors import VortexError

HOSTS = ["localhost", "127.0.0.1"]
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def build(root: Path | None = None) -> Starlette:
    """The application.

    Args:
        root: folder of runs; by default `$VORTEX_RUNS`, or `runs`.
    """
    pages = _Pages(root or runs_root())
    return Starlette(
        routes=[
            Route("/", pages.runs, methods=["GET"]),
            Route(
                "/runs/{name}", lambda r: RedirectResponse(f"/runs/{r.path_params['name']}/"), methods=["GET"]
            ),
            Route("/runs/{name}/", pages.report, methods=["GET"]),
            Route("/runs/{name}/seq", pages.seq, methods=["GET"]),
            Route("/compare", pages.compare, methods=["GET"]),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)],
        exception_handlers={VortexError: _failed},
    )


async def _failed(request: Request, error: Exception) -> Response:
    return HTMLResponse(_page("error", text=str(error)), status_code=404, headers=_HEADERS)


class _Pages:
    """The pages; each request reads the log as it is then."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._kept: dict[str, tuple[int, str]] = {}
        self._lock = threading.Lock()

    def runs(self, request: Request) -> Response:
        """All runs, with how far they are."""
        rows: list[dict[str, Any]] = []
        for name in run_names(self.root):
            try:
                with open_run(name, readonly=True, root=self.root) as run:
                    state = Follower(run).state
                    config = campaign_of(state)
                    best = Archive(state, config.objective).ranked(1)
                    rows.append(
                        {
                            "name": name,
                            "model": config.model,
                            "stage": stage_of(state),
                            "done": state.finished_found,
                            "of": config.limits.candidates,
                            "speed": metric(best.score.speed) if best else "-",
                            "accuracy": metric(best.score.accuracy) if best else "-",
                            "dollars": state.dollars,
                        }
                    )
            except VortexError as error:
                rows.append({"name": name, "error": error.message})
        return HTMLResponse(_page("runs", rows=rows), headers=_HEADERS)

    def report(self, request: Request) -> Response:
        """A run's report, which looks for news."""
        name = request.path_params["name"]
        with self._lock, open_run(name, readonly=True, root=self.root) as run:
            state = Follower(run).state
            seq, html = self._kept.get(name, (-1, ""))
            if seq != state.seq:
                html = render(run, state, campaign_of(state), live=True)
                self._kept = {name: (state.seq, html)}  # of one run: they are megabytes
        return HTMLResponse(html, headers=_HEADERS)

    def seq(self, request: Request) -> Response:
        """The number of the log's last event."""
        with open_run(request.path_params["name"], readonly=True, root=self.root) as run:
            return JSONResponse({"seq": Follower(run).state.seq}, headers=_HEADERS)

    def compare(self, request: Request) -> Response:
        """Two runs side by side."""
        one, other = (request.query_params.get(k, "") for k in ("a", "b"))
        if not one or not other:
            raise HTTPException(400, "compare?a=RUN&b=RUN")
        with (
            open_run(one, readonly=True, root=self.root) as a,
            open_run(other, readonly=True, root=self.root) as b,
        ):
            first, second = Follower(a).state, Follower(b).state
            found = compare_runs((a, first, campaign_of(first)), (b, second, campaign_of(second)))
        return HTMLResponse(_page("compare", rows=found.rows(), words=found.words), headers=_HEADERS)


_CSS = Path(__file__).parents[1] / "report" / "page.css"
_TEMPLATE = Path(__file__).with_name("pages.html.j2")


def _page(what: str, **values: Any) -> str:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(what=what, css=_CSS.read_text(encoding="utf-8"), **values)
