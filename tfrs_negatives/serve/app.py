"""The service as an ASGI application: who may ask and how much, errors, and what runs beside."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from importlib import resources

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tfrs_negatives import __version__
from tfrs_negatives.core.errors import InputError
from tfrs_negatives.runs.tables import UnknownId
from tfrs_negatives.serve.answers import Batcher, Overloaded, answer_batch
from tfrs_negatives.serve.deployment import Deployment, NotReady
from tfrs_negatives.serve.metrics import Metrics
from tfrs_negatives.serve.routes import Service, Services, router
from tfrs_negatives.serve.schemas import MAX_BODY_BYTES, Recommend, Recommendation

_log = logging.getLogger(__name__)

LOOPBACK_NAMES = ["localhost", "127.0.0.1", "::1", "[::1]"]
"""The names by which a browser on this machine may ask. A page of another name that was pointed at
this machine could read the answers otherwise."""

_PAGE = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}

OPEN_PATHS = frozenset({"/health", "/", "/page.css", "/page.js", "/icon.svg"})
"""What needs no token: whether the process lives, and the page, which holds nothing of a run."""

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def create_app(
    deployments: Sequence[Deployment],
    *,
    token: str | None = None,
    hosts: Sequence[str] | None = None,
    max_batch: int = 64,
    max_queue: int = 1024,
    timeout: float = 10.0,
    look_every: float = 1.0,
) -> FastAPI:
    """Builds the service of some runs.

    Args:
        deployments: the runs, the first is the one that answers where none is named. They may be
            loaded later: until then `/ready` and what needs an export answer 503.
        token: what requests have to carry; None is none.
        hosts: by which names it may be asked; None is any.
        max_batch: requests that are answered together, at most.
        max_queue: requests that may wait, of each run.
        timeout: seconds that a request may take.
        look_every: seconds between two looks for another export.

    Returns:
        The application. Its lifespan starts the queues and the looks for other exports.
    """
    metrics = Metrics()
    services = {}
    for deployment in deployments:
        batcher: Batcher[Recommend, Recommendation] = Batcher(
            partial(_answer, deployment),
            max_batch=max_batch,
            max_queue=max_queue,
            timeout=timeout,
            observe=metrics.batch_size.labels(deployment.name).observe,
        )
        services[deployment.name] = Service(deployment, batcher)
    metrics.watch([(service.deployment, service.batcher) for service in services.values()])
    app = FastAPI(
        title="tfrs-negatives serve",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        lifespan=partial(_lifespan, look_every=look_every),
    )
    app.state.services = Services(services, metrics)
    app.include_router(router)
    _add_page(app)
    _add_errors(app)
    # The last one is the outermost.
    app.add_middleware(LimitBody, max_bytes=MAX_BODY_BYTES, timeout=timeout)
    app.add_middleware(RequireToken, token=token)
    app.add_middleware(
        TrustedHostMiddleware, allowed_hosts=list(hosts or ["*"]), www_redirect=False
    )
    app.add_middleware(SecurityHeaders)
    app.add_middleware(MeasureRequests, metrics=metrics)
    return app


def _answer(
    deployment: Deployment, requests: Sequence[Recommend]
) -> Sequence[Recommendation | Exception]:
    return answer_batch(deployment.served, requests)


@asynccontextmanager
async def _lifespan(app: FastAPI, *, look_every: float) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        for service in app.state.services.runs.values():
            await stack.enter_async_context(service.batcher)
            look = asyncio.create_task(_keep_looking(service.deployment, look_every))
            stack.push_async_callback(_stop, look)
        yield


async def _keep_looking(deployment: Deployment, every: float) -> None:
    while True:
        await asyncio.sleep(every)
        if deployment.is_ready:
            try:
                await asyncio.to_thread(deployment.refresh)
            except Exception:
                # The next look may find it better; without a next look no export would be found.
                _log.exception("%s: the look for another export failed", deployment.name)


async def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def _add_page(app: FastAPI) -> None:
    folder = resources.files(__package__) / "page"
    for path, (name, media_type) in _PAGE.items():
        content = (folder / name).read_bytes()
        answer = partial(_file, content, media_type)
        app.add_api_route(path, answer, include_in_schema=False, response_class=Response)


def _file(content: bytes, media_type: str) -> Response:
    return Response(content, media_type=media_type)


def _add_errors(app: FastAPI) -> None:
    for kind, status in {UnknownId: 404, InputError: 422, NotReady: 503, Overloaded: 503}.items():
        app.add_exception_handler(kind, partial(_problem, status))
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(500, _failed)


def _problem(status: int, request: Request, error: Exception) -> Response:
    headers = {"Retry-After": "1"} if status == 503 else None
    return JSONResponse({"detail": str(error)}, status, headers)


def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101
    sentences = []
    for problem in error.errors()[:5]:
        place = ".".join(str(part) for part in problem["loc"])[:200]
        received = repr(problem.get("input"))
        received = received if len(received) <= 100 else received[:100] + "..."
        sentences.append(f"`{place}`: {problem['msg']}. Received: {received}")
    return JSONResponse({"detail": "; ".join(sentences)}, 422)


def _failed(request: Request, error: Exception) -> Response:
    return JSONResponse({"detail": "the service failed; its log says more"}, 500)


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


class MeasureRequests:
    """Counts requests and takes their time."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or hands it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # What no answer came of, as where the client went away, counts as a failure.
        status, began = 500, time.perf_counter()

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            # By route and not by address: of those there may be any number.
            route = getattr(scope.get("route"), "path", "none")
            method = scope["method"] if route != "none" else "none"
            self._metrics.requests.labels(method, route, status).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - began)
