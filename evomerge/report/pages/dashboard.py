"""The live dashboard: a run's page as the run goes on. It reads, and has nothing that writes."""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import uvicorn
from plotly.offline import get_plotlyjs
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from evomerge.common.errors import EvomergeError, InputError
from evomerge.report.all_figures import view_of
from evomerge.report.pages.report import asset, page_environment, shown_in_page
from evomerge.study.run_folder import FollowedRun
from evomerge.study.study import Study

SECONDS = 3.0
"""Seconds between two requests of the page for its content."""
SHARE = 0.1
"""The largest share of the time that is spent on rendering the page."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'unsafe-inline'; "
    "img-src data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class Content:
    """The page's content, rendered anew when it is asked for and the study has changed."""

    def __init__(self, folder: Path) -> None:
        """Open the run.

        Raises:
            InputError: the folder holds no run, or its study cannot be read.
        """
        self.run = FollowedRun(folder)
        self._template = page_environment().get_template("_content.html.j2")
        self._lock = threading.Lock()
        self._text, self._due = "", 0.0
        self._of: tuple[Any, ...] = ()

    def text(self) -> str:
        """Render the content as HTML; it lags behind by at most ten times the cost of rendering.

        Raises:
            EvomergeError: the study cannot be read.
        """
        with self._lock:
            started = time.monotonic()
            study = self.run.study
            if started >= self._due and (known := _known(study)) != self._of:
                shown = {**shown_in_page(view_of(study)), "live": True}
                self._text, self._of = self._template.render(shown), known
                done = time.monotonic()
                self._due = done + max(SECONDS / 2, (done - started) / SHARE)
            return self._text


def dashboard(content: Content, hosts: list[str]) -> Starlette:
    """Make the application; it answers GET and HEAD alone.

    Args:
        content: of the page.
        hosts: names by which it may be called; others are refused, so that no page of another
            site can read it by giving its own name this machine's address (DNS rebinding).
    """
    frame = page_environment().get_template("dashboard.html.j2")
    name = content.run.study.name

    def page(request: Request) -> Response:
        return _answer(request, frame.render(name=name, seconds=SECONDS), "text/html")

    def latest(request: Request) -> Response:
        try:
            return _answer(request, content.text(), "text/html")
        except EvomergeError as error:
            return PlainTextResponse(str(error), 503, HEADERS)

    def script(request: Request) -> Response:
        name = request.url.path.removeprefix("/")
        text = get_plotlyjs() if name == "plotly.js" else asset(name)
        return _answer(request, text, "text/javascript")

    return Starlette(
        routes=[
            Route("/", page),
            Route("/content", latest),
            *(Route(f"/{name}", script) for name in ("plotly.js", "page.js", "live.js")),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)],
    )


def serve(content: Content, listening: socket.socket, host: str) -> None:
    """Answer until Ctrl-C or SIGTERM."""
    app = dashboard(content, ["localhost", host, "127.0.0.1"] if is_loopback(host) else ["*"])
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, proxy_headers=False
    )
    with suppress(KeyboardInterrupt):  # uvicorn raises it again once it has stopped
        uvicorn.Server(config).run(sockets=[listening])


def listen(host: str, port: int) -> socket.socket:
    """Open a socket at the address; port 0 takes any that is free.

    Raises:
        InputError: the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"--host {host} --port {port}: cannot listen there ({reason}); "
            "choose another --port, or 0 for any that is free"
        ) from None


def is_loopback(host: str) -> bool:
    """Tell whether an address can be reached from this machine only."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _known(study: Study) -> tuple[Any, ...]:
    """Everything that differs when the page would differ."""
    notes = (study.note(key) for key in ("concluded", "test_opened", "sessions"))
    in_flight = [(m.slot, m.digest, m.split, m.attempt) for m in study.markers()]
    descents = [*study.descents(), *(one.descent for one in study.polished())]
    steps = [(one.step, len(one.checks), one.done) for one in descents]
    return (study.name, len(study.evaluations()), study.driven, in_flight, steps, *notes)


def _answer(request: Request, text: str, kind: str) -> Response:
    """Answer with the text, or "not modified" if the browser has it."""
    data = text.encode()
    version = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
    headers = {**HEADERS, "ETag": version}
    if request.headers.get("If-None-Match") == version:
        return Response(status_code=304, headers=headers)
    return Response(data, media_type=kind, headers=headers)
