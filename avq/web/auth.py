"""Access control: programs of this machine, or holders of the token; never another web site."""

from __future__ import annotations

import hmac
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

COOKIE = "avq_token"


class Guard:
    """Middleware in front of every path.

    Args:
        token: what visitors must show as ``Authorization: Bearer``, as the cookie, or once as ``/?token=``.
            None where only this machine can connect: then the Host header must name this machine, so that
            a foreign page cannot reach it through a name of its own that resolves to loopback.
    """

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            answer = self._answer(Request(scope)) if scope["type"] == "http" else None
        except ValueError:  # a Host or Origin that is no address at all
            answer = PlainTextResponse("the Host or Origin header is not an address\n", 400)
        await (answer or self._app)(scope, receive, send)

    def _answer(self, request: Request) -> Response | None:
        """None to let the request pass."""
        if request.method not in ("GET", "HEAD") and not _same_origin(request):
            return PlainTextResponse("requests from another site are refused\n", 403)
        if self._token is None:
            host = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
            return (
                None
                if _is_this_machine(host)
                else PlainTextResponse(f"there is no site {host!r} here\n", 421)
            )
        return self._token_answer(request, self._token)

    def _token_answer(self, request: Request, token: str) -> Response | None:
        in_link = request.query_params.get("token", "")
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        shown = (bearer if scheme.lower() == "bearer" else "", request.cookies.get(COOKIE, ""), in_link)
        if not any(hmac.compare_digest(value.encode(), token.encode()) for value in shown):
            text = "show the token of the configuration: /?token=..., or Authorization: Bearer\n"
            return PlainTextResponse(text, 401, {"www-authenticate": "Bearer"})
        if in_link and request.url.path == "/":  # out of the address bar, into a cookie scripts cannot read
            moved = RedirectResponse("/", 303)
            moved.set_cookie(COOKIE, token, httponly=True, samesite="strict", max_age=30 * 86400)
            return moved
        return None


def _same_origin(request: Request) -> bool:
    origin = request.headers.get("origin")
    return origin is None or urlsplit(origin).netloc == request.headers.get("host")


def _is_this_machine(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
