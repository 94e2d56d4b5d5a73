"""Many may read at once, one may change alone."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tfrs_negatives.index.live.index import ReadWriteLock


def test_readers_share_the_lock_and_a_writer_has_it_alone():
    lock, together = ReadWriteLock(), threading.Barrier(3, timeout=60)
    value, torn = [0, 0], []

    def read():
        with lock.reading():
            together.wait()  # breaks unless three hold the lock at once

    def write():
        for _ in range(2000):
            with lock.writing():
                value[0] += 1
                value[1] += 1

    def watch():
        for _ in range(2000):
            with lock.reading():
                torn.append(value[0] != value[1])

    with ThreadPoolExecutor(6) as pool:
        for task in [pool.submit(read) for _ in range(3)]:
            task.result()
        for task in [pool.submit(f) for f in (write, write, write, watch, watch)]:
            task.result()
    assert value == [6000, 6000]
    assert not any(torn)


def test_a_waiting_writer_goes_before_new_readers():
    lock, order = ReadWriteLock(), []

    def enter(how, name):
        with how():
            order.append(name)

    with lock.reading():
        writer = threading.Thread(target=enter, args=(lock.writing, "writer"))
        writer.start()
        while not lock._num_waiting:
            pass
        reader = threading.Thread(target=enter, args=(lock.reading, "reader"))
        reader.start()
        reader.join(0.1)
        assert order == []  # neither may pass while this reader is here
    writer.join(5)
    reader.join(5)
    assert order == ["writer", "reader"]


def test_an_error_inside_gives_the_lock_back():
    lock = ReadWriteLock()
    for how in (lock.reading, lock.writing):
        with pytest.raises(ZeroDivisionError), how():
            1 / 0  # noqa: B018
    with lock.writing():
        pass
