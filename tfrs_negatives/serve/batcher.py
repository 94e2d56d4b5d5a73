"""Concurrent requests -> batches: what arrives while one is worked on goes together as the next."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Generic, TypeVar

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
