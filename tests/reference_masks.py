"""Slow, obvious version of the masks: one row and one column at a time."""

from __future__ import annotations

import math

from reference import EMPTY


def known_pairs(queries, items):
    """Which items each query has chosen: query -> set of ids."""
    chosen = {}
    for query, item in zip(queries, items, strict=True):
        chosen.setdefault(query, set()).add(item)
    return chosen


def keeps_known(chosen, query, item):
    """Whether a column with this item may be a negative of a row with this query."""
    return item not in chosen.get(query, set())


def keeps_several(positives, item):
    """The same for a row with several positives; an empty id is no item."""
    return item == EMPTY or item not in positives


def keeps_margin(positive, score, absolute=None, relative=None):
    """Whether a score is far enough below the positive's."""
    far = absolute is None or score <= positive - absolute
    return far and (relative is None or score <= positive - relative * math.fabs(positive))


def cell_by_cell(keeps, rows, columns):
    """A mask [B, C] from a function of one row and one item; columns are [C] or one list a row."""
    shared = not columns or not isinstance(columns[0], list)
    return [
        [keeps(row, item) for item in (columns if shared else columns[number])]
        for number, row in enumerate(rows)
    ]
