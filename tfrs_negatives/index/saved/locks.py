"""A lock for what many may read at once, and one may change alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class ReadWriteLock:
    """Held by any number of readers or by one writer. A waiting writer goes before new readers.

    It may not be taken twice by one thread.

    Example:
        >>> lock = ReadWriteLock()
        >>> with lock.reading():
        ...     "many at once"
        'many at once'
        >>> with lock.writing():
        ...     "alone"
        'alone'
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._num_readers = 0
        self._num_waiting = 0
        self._is_writing = False

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Waits until nobody writes or waits to write."""
        with self._changed:
            self._changed.wait_for(lambda: not (self._is_writing or self._num_waiting))
            self._num_readers += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_readers -= 1
                self._changed.notify_all()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Waits until nobody reads or writes."""
        with self._changed:
            self._num_waiting += 1
            try:
                self._changed.wait_for(lambda: not (self._is_writing or self._num_readers))
                self._is_writing = True
            finally:
                self._num_waiting -= 1
        try:
            yield
        finally:
            with self._changed:
                self._is_writing = False
                self._changed.notify_all()
