"""Arrays of which only the end grows, and which of some values stand in lists."""

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


class Lookup:
    """Says which of some values stand in a list. The values are sorted once.

    Args:
        values: [n] integers or strings, any number of times each.
        padding: an entry of a list that stands for nothing, even if it is among the values.

    Example:
        >>> lookup = Lookup(np.array([7, 8, 7]), padding=-1)
        >>> lookup.in_lists(np.array([[7, -1], [9, 8]])).tolist()
        [[True, False, True], [False, True, False]]
    """

    def __init__(self, values: np.ndarray, *, padding: int | str) -> None:
        self._padding = padding
        self._known, self._place_of_value = np.unique(values, return_inverse=True)

    def in_lists(self, lists: np.ndarray) -> np.ndarray:
        """Returns [B, n] bool for lists [B, W] as `check_lists` gives them; [1, n] for [1, W]."""
        known = self._known
        named = np.zeros([len(lists), len(known)], bool)
        if len(known):
            wanted = lists.astype(str) if known.dtype.kind == "U" else lists
            place = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
            row, column = np.nonzero((known[place] == wanted) & (wanted != self._padding))
            named[row, place[row, column]] = True
        return named[:, self._place_of_value]
