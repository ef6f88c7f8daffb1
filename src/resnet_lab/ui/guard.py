"""Who may ask: a browser of this user that has the token, on the page of this server itself."""

import secrets
from collections.abc import Mapping
from hmac import compare_digest
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

CONTENT_POLICY = (
    "default-src 'none'; img-src 'self' data:; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; frame-ancestors 'none'; form-action 'none'; base-uri 'none'"
)
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
OWN_HEADER = "X-Resnet-Lab"  # another site's page cannot send it


class Guard:
    """The token of one server, and what it answers only to itself.

    Args:
        port: on which it listens; a tunnel has to keep the number.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.token = secrets.token_urlsafe(24)
        self._once = secrets.token_urlsafe(24)
        self.cookie = f"resnet_lab_{port}"  # browsers share cookies between ports
        self.hosts = (f"127.0.0.1:{port}", f"localhost:{port}")

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/?token={self.token}"

    @property
    def address_for_once(self) -> str:
        """For the command line of a browser, which every user of the machine can read: used up by
        the first visit."""
        return f"http://127.0.0.1:{self.port}/?token={self._once}"

    def set_cookie(self) -> str:
        return f"{self.cookie}={self.token}; Path=/; HttpOnly; SameSite=Strict"

    def admits(self, address: str) -> bool:
        """Whether this is a first visit: the page's address with a token."""
        path, _, query = address.partition("?")
        given = parse_qs(query).get("token", [""])[0]
        if path != "/" or not given:
            return False
        if _same(given, self._once):
            self._once = secrets.token_urlsafe(24)
            return True
        return _same(given, self.token)

    def elsewhere(self, headers: Mapping[str, str]) -> str:
        """Why a request is not meant for this server, or not sent by its page; "" where it is."""
        if headers.get("Host", "") not in self.hosts:
            return (
                f"This server answers as {self.hosts[0]} or {self.hosts[1]} alone; a tunnel has to "
                "keep the port."
            )
        origin = headers.get("Origin")
        if origin is not None and origin not in [f"http://{host}" for host in self.hosts]:
            return "A page of another origin may not ask."
        return ""

    def refusal(self, method: str, headers: Mapping[str, str]) -> str:
        """Why a request that is no first visit gets no answer; "" where it gets one."""
        if reason := self.elsewhere(headers):
            return reason
        # A typed address is of no site. What is no browser sends none, and cannot be lured.
        sites = ("same-origin", None) if method == "POST" else ("same-origin", "none", None)
        if headers.get("Sec-Fetch-Site") not in sites:
            return "A page of another site may not ask."
        if not _same(self._cookie(headers.get("Cookie", "")), self.token):
            return "Open the address that resnet-lab ui has printed; it holds the token."
        if method == "POST":
            kind = headers.get("Content-Type", "").partition(";")[0].strip()
            if kind != "application/json" or headers.get(OWN_HEADER) != "1":
                return "Only the page itself may change anything."
        return ""

    def _cookie(self, text: str) -> str:
        try:
            morsel = SimpleCookie(text).get(self.cookie)
        except CookieError:
            return ""
        return morsel.value if morsel else ""


def _same(given: str, token: str) -> bool:
    return compare_digest(given.encode(errors="replace"), token.encode())
