"""The endpoints, and how strictly they read a body."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Query, Request, Response
from fastapi.responses import PlainTextResponse
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.runs.tables import UnknownId
from tfrs_negatives.serve import schemas
from tfrs_negatives.serve.answers import Batcher, describe, export_of, history_of, known_queries
from tfrs_negatives.serve.deployment import Deployment, KeptItem, Served
from tfrs_negatives.serve.metrics import Metrics


@dataclass(frozen=True)
class Service:
    """A run in service, and the queue in front of it."""

    deployment: Deployment
    batcher: Batcher[schemas.Recommend, schemas.Recommendation]


@dataclass(frozen=True)
class Services:
    """What the endpoints work on; the first run is the one that answers where none is named."""

    runs: dict[str, Service]
    metrics: Metrics

    def find(self, run: str | None) -> Service:
        """Returns a run by name.

        Raises:
            UnknownId: if there is none of this name.
        """
        name = next(iter(self.runs)) if run is None else run
        if name not in self.runs:
            known = f"one of {list(self.runs)}"
            raise UnknownId(str(bad_input("run", known, repr(name[:100]))))
        return self.runs[name]


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


Found = Annotated[Services, Depends(_services)]

_STATUSES = {
    400: "The body is not JSON.",
    401: "The token is missing or wrong.",
    404: "There is no such run, query or item.",
    408: "The body took too long.",
    413: "The body is too long.",
    415: "The body is not application/json.",
    422: "A field or parameter is wrong.",
    503: "No export is loaded yet, or too many requests wait.",
}
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": schemas.Problem, "description": text} for status, text in _STATUSES.items()
}


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


router = APIRouter(route_class=StrictRoute, responses=_PROBLEMS)


@router.post("/recommend")
async def recommend(services: Found, body: schemas.Recommend) -> schemas.Recommendation:
    """Finds the best items for a query, known by its id or described by its features."""
    service = services.find(body.run)
    # Before it waits: nobody can answer it yet.
    _ = service.deployment.served
    return await service.batcher.ask(body)


@router.put("/items")
async def upsert_items(services: Found, body: schemas.Upsert) -> schemas.Changed:
    """Adds items by their features, or replaces them. They can be found at once.

    They live in the memory of the process: an export that takes over has them too, encoded by its
    own item tower, but a restart forgets them.
    """
    deployment = services.find(body.run).deployment
    items = {item.id: KeptItem(item.features, item.group) for item in body.items}
    if len(items) < len(body.items):
        raise bad_input("items", "each id once", f"{len(body.items) - len(items)} repeated")
    return _changed(await asyncio.to_thread(deployment.upsert, items), len(items))


@router.delete("/items")
async def delete_items(
    services: Found, parameters: Annotated[schemas.Deletion, Query()]
) -> schemas.Changed:
    """Takes items out at once. A restart forgets that, unless the next export lacks them."""
    deployment = services.find(parameters.run).deployment
    ids = parameters.id
    return _changed(await asyncio.to_thread(deployment.delete, ids), len(ids))


@router.get("/runs")
async def list_runs(services: Found) -> schemas.Runs:
    """Says what is served."""
    all_served = [service.deployment.served for service in services.runs.values()]
    return schemas.Runs(runs=[_run(served) for served in all_served])


@router.get("/queries")
async def find_queries(
    services: Found, parameters: Annotated[schemas.FindQueries, Query()]
) -> schemas.Queries:
    """Lists known queries by how their ids begin."""
    served = services.find(parameters.run).deployment.served
    key = known_queries(served).key
    queries = served.tables.queries_with_prefix(parameters.prefix, parameters.limit)
    return schemas.Queries(run=served.run, key=key, queries=queries)


@router.get("/history")
async def show_history(
    services: Found, parameters: Annotated[schemas.ShowHistory, Query()]
) -> schemas.Events:
    """Shows what a known query chose in the training log, the latest first."""
    served = services.find(parameters.run).deployment.served
    items, times = history_of(served, parameters.query_id)
    shown = items[: parameters.limit]
    events = [
        schemas.Event(**describe(served.tables.items, item), time=None if times is None else time)
        for item, time in zip(shown, times or shown, strict=False)
    ]
    return schemas.Events(
        run=served.run, query_id=parameters.query_id, total=len(items), events=events
    )


@router.get("/health")
async def health() -> schemas.Status:
    """Says that the process lives."""
    return schemas.Status(status="alive")


@router.get("/ready")
async def ready(services: Found) -> schemas.Status:
    """Says whether every run has an export in service; 503 before."""
    for service in services.runs.values():
        _ = service.deployment.served
    return schemas.Status(status="ready")


class _Prometheus(PlainTextResponse):
    media_type = CONTENT_TYPE_LATEST


@router.get("/metrics", response_class=_Prometheus)
async def metrics(services: Found) -> _Prometheus:
    """Shows the measurements as Prometheus reads them."""
    return _Prometheus(generate_latest(services.metrics.registry))


def _changed(served: Served, count: int) -> schemas.Changed:
    return schemas.Changed(
        run=served.run,
        export=export_of(served),
        changed=count,
        upserted=served.index.num_upserted,
        deleted=served.index.num_deleted,
    )


def _run(served: Served) -> schemas.ServedRun:
    index = served.index
    return schemas.ServedRun(
        name=served.run,
        export=export_of(served),
        num_items=len(index),
        has_queries=served.tables.queries is not None,
        has_history=served.tables.history is not None,
        query_features=_signature(index.query_signature),
        item_features=_signature(index.item_signature),
    )


def _signature(signature: Any) -> dict[str, str]:
    # Without the axis of the batch: a request is one query.
    return {name: f"{spec.dtype.name} {spec.shape[1:]}" for name, spec in signature.items()}
