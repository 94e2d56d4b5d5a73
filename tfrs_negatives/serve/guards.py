"""Who may ask, and how much they may send: checked before anything reads a request."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import math
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

OPEN_PATHS = frozenset({"/health", "/", "/page.css", "/page.js", "/icon.svg"})
"""What needs no token: whether the process lives, and the page, which holds nothing of a run."""

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def is_loopback(host: str) -> bool:
    """Returns whether only this machine can reach a host.

    Example:
        >>> [is_loopback(host) for host in ("127.0.0.1", "localhost", "::1", "0.0.0.0")]
        [True, True, True, False]
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class SecurityHeaders:
    """Adds `HEADERS` to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or hands it on."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self._app(scope, receive, send_with_headers)


class RequireToken:
    """Refuses what does not carry the token.

    Args:
        app: what is guarded.
        token: what has to be in `Authorization: Bearer`; None asks for nothing.
    """

    def __init__(self, app: ASGIApp, *, token: str | None) -> None:
        self._app = app
        self._expected = None if token is None else f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or hands it on."""
        if scope["type"] != "http" or self._allows(scope):
            await self._app(scope, receive, send)
            return
        needed = "expected `Authorization: Bearer` and the token of this service"
        headers = {"WWW-Authenticate": "Bearer"}
        await JSONResponse({"detail": needed}, 401, headers)(scope, receive, send)

    def _allows(self, scope: Scope) -> bool:
        if self._expected is None or scope["path"] in OPEN_PATHS:
            return True
        received = Headers(scope=scope).get("authorization", "").encode("latin-1")
        return hmac.compare_digest(received, self._expected)


class LimitBody:
    """Reads the body of a request, as far as it may be long and in the time that it may take.

    Args:
        app: what gets the body in one piece.
        max_bytes: its size at most.
        timeout: seconds.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int, timeout: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._timeout = timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or hands it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            body = await asyncio.wait_for(self._read(scope, receive), self._timeout)
        except HTTPException as error:
            # The rest of the body is not read, so the connection cannot be used again.
            headers = {"Connection": "close"}
            answer = JSONResponse({"detail": error.detail}, error.status_code, headers)
            await answer(scope, receive, send)
            return
        except asyncio.TimeoutError:
            answer = JSONResponse(
                {"detail": "the body took too long"}, 408, {"Connection": "close"}
            )
            await answer(scope, receive, send)
            return
        await self._app(scope, _replay(body, receive), send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        declared = Headers(scope=scope).get("content-length", "0")
        too_long = HTTPException(413, f"expected a body of at most {self._max_bytes} bytes")
        if declared.isdigit() and int(declared) > self._max_bytes:
            raise too_long
        chunks: list[bytes] = []
        size, more = 0, True
        while more:
            message = await receive()
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            if size > self._max_bytes:
                raise too_long
            more = message.get("more_body", False)
        return b"".join(chunks)


def _replay(body: bytes, receive: Receive) -> Receive:
    first = True

    async def replay() -> Message:
        nonlocal first
        if first:
            first = False
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replay


class StrictRequest(Request):
    """A request whose JSON is what the standard calls JSON, in UTF-8."""

    async def json(self) -> Any:
        """Returns the body.

        Raises:
            HTTPException: 400 if it is not JSON, holds NaN, infinity or a number beyond float64,
                half a surrogate pair, or is nested too deeply.
        """
        try:
            return parse_json(await self.body())
        except (ValueError, RecursionError) as error:
            raise HTTPException(400, f"expected a body in JSON: {error}") from error


class StrictRoute(APIRoute):
    """A route that reads its body as `StrictRequest` does."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Returns what answers a request."""
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            request = StrictRequest(request.scope, request.receive)
            kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            if await request.body() and kind != "application/json":
                raise HTTPException(415, "expected the content type application/json")
            return await handle(request)

        return strict


def parse_json(body: bytes) -> Any:
    """Returns what a text in JSON says.

    Raises:
        ValueError: if it is not JSON in UTF-8, or holds what no JSON text may.

    Example:
        >>> parse_json(b'{"k": 10}')
        {'k': 10}
        >>> parse_json(b"[1e999]")
        Traceback (most recent call last):
        ...
        ValueError: 1e999 is no finite number
    """
    value = json.loads(body.decode("utf-8"), parse_constant=_finite, parse_float=_finite)
    # Only an escape can make half a surrogate pair, which no answer could repeat.
    if b"\\ud" in body.lower():
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    return value


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no finite number")
    return number
