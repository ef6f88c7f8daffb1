"""The server of the page, on 127.0.0.1 alone: requests in, JSON and files out."""

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files as resources
from typing import Any
from urllib.parse import parse_qs

from resnet_lab.config.errors import UserError
from resnet_lab.ui import files
from resnet_lab.ui.actions import Actions
from resnet_lab.ui.guard import CONTENT_POLICY, HEADERS, Guard
from resnet_lab.ui.reports import Reports
from resnet_lab.ui.views import Views

HTML = "text/html; charset=utf-8"
JSON = "application/json"
SCRIPTS = (
    *("app", "charts", "columns", "curves", "dialog", "dom", "menu", "panel", "rows", "table"),
)
PAGE = {  # address: file of this package, content type
    "/": ("page.html", HTML),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    **{f"/{name}.js": (f"{name}.js", "text/javascript; charset=utf-8") for name in SCRIPTS},
}
LEAD_ON = b'<!doctype html><meta http-equiv="refresh" content="0; url=/">'
MOST_BODY = 2**14  # bytes of a request
QUIET_SECONDS = 60  # after which a connection is closed

Question = dict[str, str]


class Server(ThreadingHTTPServer):
    """Answers until it is shut down.

    Args:
        port: 0 for any free one.

    Raises:
        OSError: the port is in use.
    """

    daemon_threads = True
    allow_reuse_address = sys.platform != "win32"  # there it would share a port in use

    def __init__(self, views: Views, port: int) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.guard = Guard(self.server_address[1])
        self.views = views
        self.actions = Actions(views)
        reports = Reports(views)
        self.questions: dict[str, Callable[[Question], Any]] = {
            "/api/runs": lambda q: {
                **views.table(q.get("where", ""), _listed(q.get("columns", ""))),
                "notices": self.actions.notices(),
            },
            "/api/keys": lambda q: views.config_keys(),
            "/api/curves": lambda q: views.curves(_listed(q.get("ids", ""))),
            "/api/pictures": lambda q: views.pictures(_listed(q.get("ids", ""))),
            "/api/diff": lambda q: views.difference(_listed(q.get("ids", ""))),
            "/api/run": lambda q: views.details(q.get("id", "")),
            "/api/plan": lambda q: self.actions.plan(
                q.get("action", ""), q.get("id", "")
            ).as_data(),
        }
        self.documents: dict[str, Callable[[Question], tuple[str, bytes, str]]] = {
            "/file": lambda q: (
                *files.read(views.run(q.get("id", "")).folder, q.get("name", "")),
                CONTENT_POLICY,
            ),
            "/report": lambda q: reports.page(q.get("id", "")),
        }

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "resnet-lab", ""
    timeout = QUIET_SECONDS

    def do_GET(self) -> None:
        if self._is_first_visit() or self._refused():
            return
        path, _, query = self.path.partition("?")
        question = {key: values[0] for key, values in parse_qs(query).items()}
        try:
            if path in PAGE:
                name, kind = PAGE[path]
                content = resources("resnet_lab.ui").joinpath(name).read_bytes()
                self._send_unless_known(kind, content, CONTENT_POLICY)
            elif path in self.server.documents:
                self._send_unless_known(*self.server.documents[path](question))
            elif path in self.server.questions:
                answer = self.server.questions[path](question)
                self._send_unless_known(JSON, _json(answer), CONTENT_POLICY)
            else:
                self._say(HTTPStatus.NOT_FOUND, "There is no such page.")
        except UserError as error:
            self._say(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))

    def do_POST(self) -> None:
        self.close_connection = True  # what is left of a body would be read as a request
        if self._refused():
            return
        action = self.path.removeprefix("/api/do/")
        try:
            length = int(self.headers.get("Content-Length", ""))
            if not 0 < length <= MOST_BODY:
                raise ValueError
            body = json.loads(self.rfile.read(length))
            key, confirm = body["id"], body["confirm"]
            if not (isinstance(key, str) and isinstance(confirm, str)):
                raise TypeError
        except (ValueError, TypeError, KeyError, RecursionError):
            self._say(HTTPStatus.BAD_REQUEST, "The request is not understood.")
            return
        try:
            sentence = self.server.actions.do(action, key, confirm)
            self._send(HTTPStatus.OK, _json({"done": sentence}), JSON)
        except UserError as error:
            self._say(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))

    def _is_first_visit(self) -> bool:
        """Answer the page's address with a token by a cookie, and lead on to the bare address."""
        guard, headers = self.server.guard, self._headers()
        if guard.elsewhere(headers) or not guard.admits(self.path):
            return False
        cookie = guard.set_cookie()
        if headers.get("Sec-Fetch-Site") in (None, "none", "same-origin"):
            self._send(HTTPStatus.SEE_OTHER, b"", Location="/", Set_Cookie=cookie)
        else:  # a link in another page, such as a terminal's: a redirect would bring no cookie
            self._send(HTTPStatus.OK, LEAD_ON, HTML, Set_Cookie=cookie)
        return True

    def _headers(self) -> dict[str, str]:
        return {name.title(): str(value) for name, value in self.headers.items()}

    def _refused(self) -> bool:
        counts = Counter(name.title() for name in self.headers)
        if max(counts.get(name, 0) for name in ("Host", "Origin", "Cookie")) > 1:
            reason = "The request is not understood."
        else:
            reason = self.server.guard.refusal(self.command, self._headers())
        if reason:
            self.close_connection = True
            self._say(HTTPStatus.FORBIDDEN, reason)
        return bool(reason)

    def _say(self, status: HTTPStatus, sentence: str) -> None:
        if self.path.startswith("/api/"):
            self._send(status, _json({"error": sentence}), JSON)
        else:
            self._send(status, f"{sentence}\n".encode(errors="replace"), files.TEXT)

    def _send_unless_known(self, kind: str, content: bytes, policy: str) -> None:
        """304 and nothing else, where the browser has this very content."""
        tag = f'"{hashlib.blake2b(content, digest_size=12).hexdigest()}"'
        if self.headers.get("If-None-Match") == tag:
            self._send(HTTPStatus.NOT_MODIFIED, None, kind, policy, ETag=tag)
        else:
            self._send(HTTPStatus.OK, content, kind, policy, ETag=tag)

    def _send(
        self,
        status: HTTPStatus,
        content: bytes | None,
        kind: str = files.TEXT,
        policy: str = CONTENT_POLICY,
        **more: str,
    ) -> None:
        self.send_response(status)
        more = {name.replace("_", "-"): value for name, value in more.items()}
        for name, value in {**HEADERS, "Content-Security-Policy": policy, **more}.items():
            self.send_header(name, value)
        if content is not None:
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if content:
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are no news."""


def _json(answer: Any) -> bytes:
    # A NaN is no JSON.
    return json.dumps(_finite(answer), ensure_ascii=False, default=str).encode(errors="replace")


def _finite(node: Any) -> Any:
    if isinstance(node, float):
        return node if abs(node) < float("inf") else None
    if isinstance(node, dict):
        return {str(key): _finite(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_finite(value) for value in node]
    return node


def _listed(text: str) -> list[str]:
    return [part for part in text.split(",") if part]
