"""The first or the last event of each group: of a query, of an item."""

from __future__ import annotations

from typing import Literal

import numpy as np

Moment = Literal["first", "last"]


def event_of_each(
    group_of_event: np.ndarray, times: np.ndarray | None, *, moment: Moment
) -> np.ndarray:
    """Finds the earliest or the latest event of each group.

    Args:
        group_of_event: [E] the numbers of the groups 0 .. G - 1, each of which has an event.
        times: [E] when each event was; None orders them by row. Of events at one time the later row
            is later.
        moment: "first" or "last".

    Returns:
        [G] int64, the row of that event.

    Example:
        >>> groups, times = np.array([0, 1, 0]), np.array([9, 5, 3])
        >>> event_of_each(groups, times, moment="last").tolist()
        [0, 1]
        >>> event_of_each(groups, None, moment="last").tolist()
        [2, 1]
    """
    order = np.lexsort([group_of_event] if times is None else [times, group_of_event])
    counts = np.bincount(group_of_event)
    ends = np.cumsum(counts)
    return order[ends - 1 if moment == "last" else ends - counts]
