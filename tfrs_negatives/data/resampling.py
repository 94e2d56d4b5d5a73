"""Events of frequent items dropped, events of rare items repeated: which rows of a log stay."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tfrs_negatives.core.errors import bad_input


def resampled_rows(
    item_ids: np.ndarray,
    *,
    threshold: float | None = None,
    exponent: float | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Returns how often each event is kept, as row numbers in the order of the log.

        r_j = min(1, sqrt(threshold / f_j)),    f_j = n_j / E          with `threshold`
        r_j = n_j^(exponent - 1) E / sum_k n_k^exponent                with `exponent`

    An event of item j is there floor(r_j) times, and once more with the probability that is left:
    n_j r_j events of it on average. A threshold only drops, of the items with a larger share than
    it. An exponent keeps the number of all events on average: below 1 it repeats the rare items and
    thins the frequent ones, 0 gives all items as many, 1 changes nothing.

    Args:
        item_ids: [E] ids, n_j events of item j.
        threshold: the share of the events above which an item is thinned, positive.
        exponent: of the counts, at least 0.
        seed: of the draws, at least 0.

    Returns:
        [E'] int64, ascending.

    Raises:
        InputError: if not exactly one of `threshold` and `exponent` is given, one is out of its
            range, or no event is left.

    Example:
        >>> rows = resampled_rows(np.array([7, 7, 7, 7, 9]), exponent=0)
        >>> int(np.sum(rows == 4))     # 9 gets 5 / 2 events on average: 2 or 3
        2
        >>> len(resampled_rows(np.array([7, 7, 7, 7, 9]), exponent=1))
        5

    Source: Mikolov et al., NeurIPS 2013, equation 5, for the threshold; there every epoch draws
        anew, here a seed draws once.
    """
    _check(threshold, exponent, seed)
    _, item_of_event, counts = np.unique(item_ids, return_inverse=True, return_counts=True)
    share = counts / max(len(item_ids), 1)
    if threshold is not None:
        rates = np.minimum(1.0, np.sqrt(threshold / share))
    else:
        # Of shares: powers of counts may be larger than any float.
        powers = share ** float(exponent or 0.0)
        rates = powers / powers.sum() / share
    whole = np.floor(rates)
    rest = (rates - whole)[item_of_event]
    draws = np.random.Generator(np.random.PCG64(seed)).random(len(item_of_event))
    copies = whole.astype(np.int64)[item_of_event] + (draws < rest)
    rows = np.repeat(np.arange(len(item_of_event)), copies)
    if not len(rows):
        raise bad_input("resample", "a setting that leaves some of the events", "none left")
    return rows


def _check(threshold: Any, exponent: Any, seed: Any) -> None:
    if (threshold is None) == (exponent is None):
        received = f"threshold={threshold}, exponent={exponent}"
        raise bad_input("resample", "either `threshold` or `exponent`", received)
    if threshold is not None and not 0 < threshold < math.inf:
        raise bad_input("threshold", "a positive number", threshold)
    if exponent is not None and not 0 <= exponent < math.inf:
        raise bad_input("exponent", "a number of at least 0", exponent)
    if seed < 0:
        raise bad_input("seed", "a seed of at least 0", seed)
