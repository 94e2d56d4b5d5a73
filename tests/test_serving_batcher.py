"""The queue in front of the search: batches form, neighbours are safe, overload is said."""

import asyncio
import threading
from contextlib import suppress

import pytest

from tfrs_negatives.serve.answers import Batcher, Overloaded


class Work:
    """Doubles numbers; waits at a gate, remembers its batches, fails for what is negative."""

    def __init__(self):
        self.batches, self.threads = [], set()
        self.gate, self.started = threading.Event(), threading.Event()
        self.gate.set()

    def __call__(self, numbers):
        self.started.set()
        assert self.gate.wait(60)
        self.batches.append(list(numbers))
        self.threads.add(threading.get_ident())
        return [2 * n if n >= 0 else ValueError(f"no {n}") for n in numbers]


async def started(work):
    while not work.started.is_set():
        await asyncio.sleep(0.001)


def test_what_arrives_while_the_thread_is_busy_goes_together():
    work = Work()

    async def main():
        work.gate.clear()
        async with Batcher(work, max_batch=5) as batcher:
            first = asyncio.create_task(batcher.ask(0))
            await started(work)
            others = [asyncio.create_task(batcher.ask(n)) for n in range(1, 9)]
            while batcher.num_waiting < 8:
                await asyncio.sleep(0.001)
            work.gate.set()
            return await asyncio.gather(first, *others)

    assert asyncio.run(main()) == [2 * n for n in range(9)]
    # The first alone and at once, then the next five, then what is left.
    assert work.batches == [[0], [1, 2, 3, 4, 5], [6, 7, 8]]
    assert work.threads.isdisjoint({threading.get_ident()})
    assert len(work.threads) == 1


def test_a_lone_request_does_not_wait_for_others():
    work, delays = Work(), []

    async def main():
        loop = asyncio.get_running_loop()
        call_at = loop.call_at

        def note(when, *arguments, **options):
            delays.append(when - loop.time())
            return call_at(when, *arguments, **options)

        loop.call_at = note
        async with Batcher(work, timeout=600) as batcher:
            for n in range(20):
                assert await batcher.ask(n) == 2 * n

    asyncio.run(main())
    assert work.batches == [[n] for n in range(20)]
    # The loop was to wake up for nothing but the ends of the requests' own time.
    assert len(delays) == 20
    assert min(delays) > 500


def test_who_fails_fails_alone():
    work = Work()

    async def main():
        work.gate.clear()
        async with Batcher(work) as batcher:
            tasks = [asyncio.create_task(batcher.ask(n)) for n in (1, -2, 3)]
            await started(work)
            work.gate.set()
            return await asyncio.gather(*tasks, return_exceptions=True)

    one, two, three = asyncio.run(main())
    assert (one, three) == (2, 6)
    assert isinstance(two, ValueError)
    assert str(two) == "no -2"
    assert work.batches == [[1, -2, 3]]


def test_a_batch_that_breaks_is_told_to_all_and_the_next_one_works():
    def work(numbers):
        if 7 in numbers:
            raise ZeroDivisionError
        return numbers

    async def main():
        async with Batcher(work) as batcher:
            with pytest.raises(ZeroDivisionError):
                await batcher.ask(7)
            return await batcher.ask(8)

    assert asyncio.run(main()) == 8


def test_beyond_the_queue_requests_are_turned_away_and_the_others_are_answered():
    work = Work()

    async def main():
        work.gate.clear()
        async with Batcher(work, max_queue=3) as batcher:
            first = asyncio.create_task(batcher.ask(0))
            await started(work)
            waiting = [asyncio.create_task(batcher.ask(n)) for n in (1, 2, 3)]
            await asyncio.sleep(0)
            with pytest.raises(Overloaded, match="3 requests wait"):
                await batcher.ask(4)
            work.gate.set()
            return await asyncio.gather(first, *waiting)

    assert asyncio.run(main()) == [0, 2, 4, 6]


def test_who_waited_too_long_is_told_so_and_is_not_worked_on():
    work = Work()

    async def main():
        work.gate.clear()
        async with Batcher(work, timeout=0.05) as batcher:
            tasks = [asyncio.create_task(batcher.ask(0))]
            await started(work)
            tasks.append(asyncio.create_task(batcher.ask(1)))
            late = await asyncio.gather(*tasks, return_exceptions=True)
            work.gate.set()
            while True:
                # On a busy machine this one may wait too long as well.
                with suppress(Overloaded):
                    return late, await batcher.ask(2)

    late, after = asyncio.run(main())
    assert [type(error) for error in late] == [Overloaded, Overloaded]
    assert after == 4
    # 0 was under way already; nobody waited for 1 any more when its turn came.
    assert work.batches[0] == [0]
    assert {n for batch in work.batches[1:] for n in batch} == {2}


def test_sizes_of_batches_are_observed():
    work, sizes = Work(), []

    async def main():
        work.gate.clear()
        async with Batcher(work, max_batch=2, observe=sizes.append) as batcher:
            tasks = [asyncio.create_task(batcher.ask(n)) for n in range(5)]
            await started(work)
            work.gate.set()
            await asyncio.gather(*tasks)

    asyncio.run(main())
    assert sum(sizes) == 5
    assert max(sizes) == 2
