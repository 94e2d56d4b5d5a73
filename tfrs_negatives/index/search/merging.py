"""Answers of several indexes made into one, and lists of ids turned into masks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Answer = tuple[np.ndarray, np.ndarray]
"""Scores [B, k] float32 and ids [B, k]."""


def merge_answers(answers: Sequence[Answer], k: int, padding: int | str) -> Answer:
    """Merges the answers of indexes that hold different items.

    Args:
        answers: scores [B, w] and ids [B, w] of each; w may differ.
        k: the number of columns of the result.
        padding: the id of a column without an item.

    Returns:
        scores [B, k] float32, falling, and ids [B, k]. Of equal scores that of the earlier answer
        stands first. A column for which nothing is left has score -inf and the padding id.

    Example:
        >>> first = np.array([[3.0, 1.0]], np.float32), np.array([[10, 11]])
        >>> second = np.array([[2.0, -np.inf]], np.float32), np.array([[20, -1]])
        >>> scores, ids = merge_answers([first, second], k=4, padding=-1)
        >>> scores.tolist(), ids.tolist()
        ([[3.0, 2.0, 1.0, -inf]], [[10, 20, 11, -1]])
    """
    scores = np.concatenate([scores for scores, _ in answers], axis=1)
    ids = np.concatenate([ids for _, ids in answers], axis=1)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    scores, ids = np.take_along_axis(scores, order, 1), np.take_along_axis(ids, order, 1)
    missing = [(0, 0), (0, k - scores.shape[1])]
    scores = np.pad(scores, missing, constant_values=-math.inf)
    ids = np.pad(ids, missing)
    return scores, np.where(scores == -math.inf, padding, ids)


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
