"""Requests that wait -> batches -> their answers, each batch from one export.

What arrives while one batch is worked on goes together as the next.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.index.retriever import Asked
from tfrs_negatives.runs.tables import KnownItems, KnownQueries
from tfrs_negatives.serve.deployment import Served
from tfrs_negatives.serve.schemas import Export, RankedItem, Recommend, Recommendation
from tfrs_negatives.towers.signature import feature_arrays, join_rows

Request = TypeVar("Request")
Answer = TypeVar("Answer")


class Overloaded(RuntimeError):
    """More requests wait than may, or one has waited too long. It may be tried again."""


class Batcher(Generic[Request, Answer]):
    """Hands requests to a function that answers many at once, in one thread of its own.

    A request that finds the thread idle is handed over at once: no request ever waits for others
    to come. While the thread is busy requests queue up, and go together.

    Args:
        answer_all: requests, at most `max_batch` -> as many answers, or exceptions, which are
            raised where the request was asked. It runs in the thread, never on the event loop.
        max_batch: how many requests go together.
        max_queue: how many may wait.
        timeout: seconds that a request may take, the wait included.
        observe: is told the size of every batch.

    Example:
        >>> async def main():
        ...     sizes = []
        ...     batcher = Batcher(lambda numbers: [2 * n for n in numbers], observe=sizes.append)
        ...     async with batcher:
        ...         answers = await asyncio.gather(*(batcher.ask(n) for n in range(3)))
        ...     return answers, sizes
        >>> asyncio.run(main())
        ([0, 2, 4], [3])
    """

    def __init__(
        self,
        answer_all: Callable[[Sequence[Request]], Sequence[Answer | Exception]],
        *,
        max_batch: int = 64,
        max_queue: int = 1024,
        timeout: float = 10.0,
        observe: Callable[[int], None] = lambda size: None,
    ) -> None:
        self._answer_all = answer_all
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._timeout = timeout
        self._observe = observe
        self._waiting: deque[tuple[Request, asyncio.Future[Answer]]] = deque()
        self._arrived = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Batcher[Request, Answer]:
        # An event belongs to the loop that first waits for it; a service may be started again.
        self._arrived = asyncio.Event()
        self._worker = asyncio.create_task(self._work())
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._worker is not None:
            self._worker.cancel()
            with suppress(asyncio.CancelledError):
                await self._worker

    @property
    def num_waiting(self) -> int:
        """How many requests wait for the next batch."""
        return len(self._waiting)

    async def ask(self, request: Request) -> Answer:
        """Returns the answer to one request.

        Raises:
            Overloaded: if too many wait, or the answer took too long.
            Exception: what `answer_all` returned for this request.
        """
        if len(self._waiting) >= self._max_queue:
            raise Overloaded(f"{self._max_queue} requests wait already")
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        self._arrived.set()
        try:
            return await asyncio.wait_for(future, self._timeout)
        except asyncio.TimeoutError as error:
            raise Overloaded(f"no answer within {self._timeout:g} s") from error

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, "batcher") as thread:
            while True:
                await self._arrived.wait()
                requests, futures = self._take()
                if requests:
                    self._observe(len(requests))
                    answers = await loop.run_in_executor(thread, self._try_all, requests)
                    _deliver(futures, answers)

    def _take(self) -> tuple[list[Request], list[asyncio.Future[Answer]]]:
        requests: list[Request] = []
        futures: list[asyncio.Future[Answer]] = []
        while self._waiting and len(requests) < self._max_batch:
            request, future = self._waiting.popleft()
            # Nobody waits any more for one that was cancelled or took too long.
            if not future.done():
                requests.append(request)
                futures.append(future)
        if not self._waiting:
            self._arrived.clear()
        return requests, futures

    def _try_all(self, requests: Sequence[Request]) -> Sequence[Answer | Exception]:
        try:
            return self._answer_all(requests)
        except Exception as error:
            return [error] * len(requests)


def _deliver(
    futures: Sequence[asyncio.Future[Answer]], answers: Sequence[Answer | Exception]
) -> None:
    for future, answer in zip(futures, answers, strict=True):
        if future.done():
            continue
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)


class _Checked(NamedTuple):
    """A request that the index can take, as arrays; features are [1, ...]."""

    features: dict[str, np.ndarray]
    asked: Asked

    @property
    def kind(self) -> Hashable:
        """Requests of one kind can go together: the same filters, features of one shape."""
        shapes = tuple(column.shape for column in self.features.values())
        return self.asked.allow is None, self.asked.allow_groups is None, shapes


def answer_batch(served: Served, requests: Sequence[Recommend]) -> list[Recommendation | Exception]:
    """Answers requests that came together.

    Each is checked alone, once, before it joins the others. Should a search fail all the same, each
    of its requests is tried once more by itself: nobody fails for what a neighbour asked.

    Args:
        served: what answers all of them.
        requests: n of them.

    Returns:
        n answers, or what was wrong with the request.
    """
    answers: list[Recommendation | Exception] = [RuntimeError("no answer")] * len(requests)
    groups: dict[Hashable, dict[int, _Checked]] = {}
    for place, request in enumerate(requests):
        try:
            checked = _check(served, request)
        except Exception as error:
            answers[place] = error
        else:
            groups.setdefault(checked.kind, {})[place] = checked
    for group in groups.values():
        for place, answer in zip(group, _search(served, list(group.values())), strict=True):
            answers[place] = answer
    return answers


def known_queries(served: Served) -> KnownQueries:
    """Returns the known queries of a run.

    Raises:
        InputError: if its log has no `query_key`.
    """
    if served.tables.queries is None:
        raise bad_input("query_id", "the features of a query, as the log has no query_key", "an id")
    return served.tables.queries


def history_of(served: Served, query: str) -> tuple[list[Any], list[int] | None]:
    """Returns the items that a known query chose and when, the latest first.

    Raises:
        InputError: if the query is unknown, or the training log could not be read.
    """
    known_queries(served).take([query])
    if served.tables.history is None:
        raise bad_input("history", "a run whose training log can be read", served.run)
    return served.tables.history.of(query)


def _check(served: Served, request: Recommend) -> _Checked:
    index, exclude = served.index, list(request.exclude or [])
    if request.query_id is None:
        features: dict[str, Any] = {
            name: [value] for name, value in (request.features or {}).items()
        }
    else:
        query = str(request.query_id)
        known = known_queries(served).take([query])
        features = {name: known[name] for name in index.query_signature}
        exclude += history_of(served, query)[0] if request.exclude_seen else []
    arrays = feature_arrays(features, index.query_signature)
    asked = index.check(
        1,
        request.k,
        exclude=exclude or None,
        allow=request.allow,
        allow_groups=request.allow_groups,
    )
    return _Checked(arrays, asked)


def _search(served: Served, requests: Sequence[_Checked]) -> Sequence[Recommendation | Exception]:
    try:
        return _search_together(served, requests)
    except Exception as error:
        if len(requests) == 1:
            return [error]
        return [_search(served, [request])[0] for request in requests]


def _search_together(served: Served, requests: Sequence[_Checked]) -> list[Recommendation]:
    index = served.index
    features = join_rows([request.features for request in requests], index.query_signature)
    asked = _join(served, [request.asked for request in requests])
    scores, ids = index.answer(index.embed("query", features), asked)
    index.warn_of_unknown(asked)
    return [
        _answer(served, request.asked.k, row_ids, row_scores)
        for request, row_ids, row_scores in zip(requests, ids, scores, strict=True)
    ]


def _join(served: Served, asked: Sequence[Asked]) -> Asked:
    """Makes one of requests of one kind, with a list for each."""
    nature = served.index.nature
    return Asked(
        max(one.k for one in asked),
        _stack([one.exclude for one in asked], nature.padding_id),
        _stack([one.allow for one in asked], nature.padding_id),
        _stack([one.allow_groups for one in asked], nature.group_padding),
    )


def _stack(lists: Sequence[np.ndarray | None], padding: int | str | None) -> np.ndarray | None:
    """Returns lists [1, W] of any lengths as [n, W], filled up; None where there is none."""
    given = [ids for ids in lists if ids is not None]
    if not given:
        return None
    stacked = np.full([len(lists), max(ids.shape[1] for ids in given)], padding, given[0].dtype)
    for place, ids in enumerate(lists):
        if ids is not None:
            stacked[place, : ids.shape[1]] = ids[0]
    return stacked


def _answer(served: Served, k: int, ids: np.ndarray, scores: np.ndarray) -> Recommendation:
    scores, ids = scores[:k], ids[:k]
    found = np.isfinite(scores)
    pairs = zip(ids[found].tolist(), scores[found].tolist(), strict=True)
    ranked = [
        RankedItem(**describe(served.tables.items, item), rank=rank, score=score)
        for rank, (item, score) in enumerate(pairs, 1)
    ]
    return Recommendation(
        run=served.run, export=export_of(served), k=k, found=len(ranked), items=ranked
    )


def describe(items: KnownItems, item: Any) -> dict[str, Any]:
    """Returns the fields of `schemas.Item`."""
    return {
        "id": item,
        "title": items.title(item),
        "training_events": items.training_events(item),
    }


def export_of(served: Served) -> Export:
    """Returns the export as an answer names it."""
    return Export(created=served.export.created, checksum=served.export.checksum)
