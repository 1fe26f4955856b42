"""An HTTP server for the browser of this machine: one page, and functions that the page calls.

It listens on 127.0.0.1 alone. A request must name that address as its Host, so that no other site can reach it under a
name of its own (DNS rebinding). A call must carry the token that stands in the page, so that no other site can make one
(CSRF). It serves no files: every answer is what a function returns.
"""

from __future__ import annotations

import json
import os
import secrets
import socketserver
import sys
import threading
import traceback
import webbrowser
from collections.abc import Callable, Mapping
from contextlib import suppress
from hashlib import blake2b
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, TypeVar

from text_gym.errors import DataError, OptionError, TextGymError
from text_gym.files import worded

ADDRESS = "127.0.0.1"
FIRST_PORT, PORTS = 8600, 100
LARGEST_CALL = 1 << 16  # bytes
PATIENCE = 30.0  # seconds that a browser may take to send its request
TOKEN = "X-Text-Gym-Token"
HEADERS = {
    "Cache-Control": "no-cache",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
# Everything that a page needs is in it; the report's charts have style attributes.
POLICY = (
    "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

T = TypeVar("T")
Json = dict[str, Any]
Page = Callable[[str, str], str]
"""Renders the page; takes the nonce of its scripts and the token of its calls."""
Calls = Mapping[str, Callable[[Json], Json]]
"""What the page may call by POST: a function from a JSON object to a JSON object for each path."""


class LocalServer:
    """Serves a page on this machine, in threads of its own, between `with` and its end.

    Args:
        page: Renders the page.
        calls: Functions that the page may call.
        port: Port; if not given, the first free one of 8600 to 8699, or else any. 0 for any free one.
    """

    def __init__(self, page: Page, calls: Calls | None = None, port: int | None = None) -> None:
        """Listen; nothing is answered before `with`."""
        self._server = _listen(port)
        self._server.page, self._server.calls = page, dict(calls or {})
        self.port = int(self._server.server_address[1])
        self.address = f"http://{ADDRESS}:{self.port}/"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)

    def __enter__(self) -> LocalServer:
        """Begin to answer."""
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()

    def open_browser(self) -> None:
        """Open the page in the user's browser, if there is one with a window of its own."""
        with suppress(webbrowser.Error, OSError):
            in_terminal = type(webbrowser.get()) is webbrowser.GenericBrowser and "BROWSER" not in os.environ
            if not in_terminal:
                threading.Thread(target=webbrowser.open, args=(self.address,), daemon=True).start()

    def wait(self) -> None:
        """Answer until Ctrl-C."""
        with suppress(KeyboardInterrupt):
            while self._thread.is_alive():
                self._thread.join(3600)


class _Server(ThreadingHTTPServer):
    request_queue_size = 64  # connections that wait to be accepted
    page: Page
    calls: dict[str, Callable[[Json], Json]]

    def __init__(self, port: int) -> None:
        super().__init__((ADDRESS, port), _Handler)
        own = self.server_address[1]
        self.hosts = {f"{ADDRESS}:{own}", f"localhost:{own}"}
        self.nonce, self.token = secrets.token_urlsafe(16), secrets.token_urlsafe(16)

    def server_bind(self) -> None:
        """Bind without asking the network for this machine's name."""
        socketserver.TCPServer.server_bind(self)

    def handle_error(self, request: object, client_address: object) -> None:
        """Report what went wrong, unless the browser has gone away."""
        if not isinstance(sys.exc_info()[1], OSError):
            traceback.print_exc()


def _listen(port: int | None) -> _Server:
    """Listen on a port; without one, on the first that is free."""
    if port is not None:
        if not 0 <= port < 1 << 16:
            raise OptionError(f"port={port} must lie in 0..65535; 0 takes any free one")
        try:
            return _Server(port)
        except OSError as problem:
            reason = problem.strerror or problem
            raise OptionError(f"cannot listen on port {port} ({reason}); leave --port out to take a free one") from None
    for candidate in range(FIRST_PORT, FIRST_PORT + PORTS):
        with suppress(OSError):
            return _Server(candidate)
    return _Server(0)


class _RefusedError(Exception):
    """A request that is not answered, and why."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = PATIENCE

    def do_GET(self) -> None:
        """Send the page."""
        self._answer(self._page)

    def do_HEAD(self) -> None:
        """Send the headers of the page."""
        self._answer(self._page)

    def do_POST(self) -> None:
        """Call a function."""
        self._answer(self._call)

    def _answer(self, function: Callable[[], None]) -> None:
        try:
            hosts = self.headers.get_all("Host") or []
            if len(hosts) != 1 or hosts[0].lower() not in self.server.hosts:
                raise _RefusedError(
                    HTTPStatus.FORBIDDEN,
                    f"this server answers to http://{ADDRESS}:{self.server.server_address[1]}/ alone",
                )
            function()
        except _RefusedError as refusal:
            self._send_json(refusal.status, {"error": str(refusal)})
        except TextGymError as problem:
            self._send_json(HTTPStatus.BAD_REQUEST, {"error": str(problem)})
        except OSError:
            raise  # the browser has gone away
        except Exception as problem:  # the user's own reward or agent, or a mistake in this program
            traceback.print_exc()
            message = f"{type(problem).__name__}: {problem}".splitlines()[0][:300]
            self._send_json(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": f"{message} (the terminal says more)"})

    def _page(self) -> None:
        if self.path.partition("?")[0] != "/":
            raise _RefusedError(HTTPStatus.NOT_FOUND, "there is nothing here; the page is at /")
        text = _answer_of(self.server.page, self.server.nonce, self.server.token)
        content = text.encode("utf-8", "replace")  # a path may have bytes that are no UTF-8
        tag = f'"{blake2b(content, digest_size=16).hexdigest()}"'
        if self.headers.get("If-None-Match") == tag:
            self._send(HTTPStatus.NOT_MODIFIED, b"", {"ETag": tag})
            return
        policy = POLICY.format(nonce=self.server.nonce)
        headers = {"Content-Type": "text/html; charset=utf-8", "ETag": tag, "Content-Security-Policy": policy}
        self._send(HTTPStatus.OK, content, headers)

    def _call(self) -> None:
        function = self.server.calls.get(self.path)
        if function is None:
            raise _RefusedError(HTTPStatus.NOT_FOUND, "there is no such call")
        origin = self.headers.get("Origin")
        if origin is not None and origin.removeprefix("http://") not in self.server.hosts:
            raise _RefusedError(HTTPStatus.FORBIDDEN, "another site may not call this one")
        if not secrets.compare_digest(self.headers.get(TOKEN, "").encode(), self.server.token.encode()):
            raise _RefusedError(HTTPStatus.FORBIDDEN, "the token of the page is missing or old; load the page again")
        self._send_json(HTTPStatus.OK, _answer_of(function, self._read_object()))

    def _read_object(self) -> Json:
        """Read the JSON object that was sent."""
        if self.headers.get_content_type() != "application/json":
            raise _RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "a call is application/json")
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            raise _RefusedError(HTTPStatus.LENGTH_REQUIRED, "a call says its Content-Length")
        if len(length) > 9 or int(length) > LARGEST_CALL:
            raise _RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a call has at most {LARGEST_CALL} bytes")
        try:
            content = json.loads(self.rfile.read(int(length)), parse_constant=_no_constant)
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, dict):
            raise _RefusedError(HTTPStatus.BAD_REQUEST, "a call is a JSON object")
        return content

    def _send_json(self, status: HTTPStatus, content: Json) -> None:
        text = json.dumps(worded(content), ensure_ascii=False, allow_nan=False)
        self._send(status, text.encode("utf-8", "replace"), {"Content-Type": "application/json; charset=utf-8"})

    def _send(self, status: HTTPStatus, content: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in (HEADERS | dict(headers)).items():
            self.send_header(name, value)
        if status != HTTPStatus.NOT_MODIFIED:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse a request that http.server cannot read, or has no method for."""
        status = HTTPStatus.METHOD_NOT_ALLOWED if code == HTTPStatus.NOT_IMPLEMENTED else HTTPStatus(code)
        self.close_connection = True
        self._send_json(status, {"error": status.phrase})

    def version_string(self) -> str:
        """Name the server in answers."""
        return "text-gym"

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing for a request."""


def _answer_of(function: Callable[..., T], *arguments: object) -> T:
    """Call a function of the page; in the handler, an OSError means that the browser has gone away."""
    try:
        return function(*arguments)
    except OSError as problem:
        raise DataError(f"{type(problem).__name__}: {problem}") from problem


def _no_constant(name: str) -> None:
    raise ValueError(f"JSON has no {name}")
