"""Rows that are appended one by one without copying all of them each time."""

from __future__ import annotations

from typing import Any

import numpy as np


class GrowingArray:
    """An array of which only the end grows. Strings may get longer.

    What `view` has returned stays as it is when rows are only appended: a thread may read it
    meanwhile. `remove` alters it.

    Args:
        rows: [n, ...] the first rows. They are copied.

    Example:
        >>> names = GrowingArray(np.array(["a"]))
        >>> before = names.view()
        >>> names.append(np.array(["bcd"]))
        >>> before.tolist(), names.view().tolist()
        (['a'], ['a', 'bcd'])
    """

    def __init__(self, rows: Any) -> None:
        self._rows = np.array(rows)
        self._count = len(self._rows)

    def __len__(self) -> int:
        return self._count

    def append(self, rows: np.ndarray) -> None:
        """Appends [m, ...] rows, in time that does not depend on how many there are, on average."""
        end = self._count + len(rows)
        dtype = np.result_type(self._rows, rows)
        if end > len(self._rows) or dtype != self._rows.dtype:
            grown = np.empty([max(end, 2 * self._count), *self._rows.shape[1:]], dtype)
            grown[: self._count] = self.view()
            self._rows = grown
        self._rows[self._count : end] = rows
        self._count = end

    def view(self) -> np.ndarray:
        """Returns [n, ...] all rows, without a copy."""
        return self._rows[: self._count]

    def remove(self, row: int) -> None:
        """Removes a row by moving the last one into its place."""
        self._count -= 1
        self._rows[row] = self._rows[self._count]
