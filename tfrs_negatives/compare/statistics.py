"""Whether a difference is more than the luck of which users were asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from scipy.stats import monte_carlo_test

SIGNIFICANCE = 0.05
NUM_FLIPS = 10_000
CHUNK_BYTES = 16 * 2**20


class QueryScores(NamedTuple):
    """A metric of one run for each test query.

    Attributes:
        keys: [Q] what names each query, each once; None where a query is one event of the log.
        values: [Q] the metric.
    """

    keys: np.ndarray | None
    values: np.ndarray


@dataclass(frozen=True)
class PairedTest:
    """How two variants differ over U users.

    Attributes:
        num_users: U.
        mean_difference: mean over the users.
        low: lower end of the 95 % confidence interval of it.
        high: upper end.
        p: probability of a mean difference as far from 0, if for each user it were a coin that says
            which of the two variants did better.
    """

    num_users: int
    mean_difference: float
    low: float
    high: float
    p: float


def spread(values: Sequence[float | None]) -> dict[str, float | None]:
    """Returns mean and standard deviation (of a sample, so None for a single value).

    Args:
        values: one per seed; None where there is none.

    Example:
        >>> spread([1.0, 3.0])["std"] == 2**0.5
        True
        >>> spread([4.0, None])
        {'mean': 4.0, 'std': None}
    """
    known = np.array([value for value in values if value is not None])
    return {
        "mean": float(known.mean()) if len(known) else None,
        "std": float(known.std(ddof=1)) if len(known) > 1 else None,
    }


def user_differences(first: Sequence[QueryScores], second: Sequence[QueryScores]) -> np.ndarray:
    """Pairs two variants user by user and averages each user over the seeds.

    Args:
        first: of one variant, one per seed.
        second: of the other one, in the order of the same seeds.

    Returns:
        [U] first - second, of the users that both have been asked for in some seed. Where queries
        have no key, each query of each seed is one.

    Example:
        >>> one = QueryScores(np.array(["a", "b"]), np.array([0.5, 1.0]))
        >>> other = QueryScores(np.array(["b", "c"]), np.array([0.25, 1.0]))
        >>> user_differences([one], [other]).tolist()
        [0.75]
    """
    keys, differences = [], []
    for one, other in zip(first, second, strict=True):
        ours = theirs = np.arange(len(one.values))
        if one.keys is not None and other.keys is not None:
            shared, ours, theirs = np.intersect1d(
                one.keys, other.keys, assume_unique=True, return_indices=True
            )
            keys.append(shared)
        differences.append(one.values[ours] - other.values[theirs])
    joined = np.concatenate(differences)
    if not keys:
        return joined
    _, user = np.unique(np.concatenate(keys), return_inverse=True)
    return np.bincount(user, joined) / np.bincount(user)


def paired_test(
    differences: np.ndarray, *, num_flips: int = NUM_FLIPS, seed: int = 0
) -> PairedTest | None:
    """The paired randomisation test, by flipping the signs of users.

    Args:
        differences: [U] one number per user.
        num_flips: how many random assignments of signs are looked at.
        seed: of these.

    Returns:
        The test, with p = (1 + assignments of a mean at least as far from 0) / (1 + num_flips) and
        the interval mean ± 1.96 standard errors over the users; None for fewer than two users.

    Example:
        >>> test = paired_test(np.array([1.0] * 12))
        >>> test.mean_difference, test.low, test.p < 0.01
        (1.0, 1.0, True)

    Source: Smucker, Allan and Carterette, CIKM 2007.
    """
    num_users = len(differences)
    if num_users < 2:
        return None
    mean = float(differences.mean())
    error = float(differences.std(ddof=1)) / num_users**0.5
    reach = NormalDist().inv_cdf(0.975) * error
    p = _share_as_far(differences, num_flips, np.random.default_rng(seed))
    return PairedTest(num_users, mean, mean - reach, mean + reach, p)


def _share_as_far(differences: np.ndarray, num_flips: int, rng: np.random.Generator) -> float:
    # A user without a difference adds nothing, whatever the sign.
    moved = differences[differences != 0].astype(np.float64)

    def flip(size: tuple[int, ...]) -> np.ndarray:
        return np.where(rng.random(size, np.float32) < 0.5, moved, -moved)

    def distance(values: np.ndarray, axis: int) -> np.ndarray:
        # Sums that are equal on paper must count as such, and the values come from float32: scipy
        # takes for equal what differs by a few roundings of the type of the statistic.
        return np.abs(values.sum(axis)).astype(np.float32)

    found = monte_carlo_test(
        moved,
        flip,
        distance,
        vectorized=True,
        n_resamples=num_flips,
        batch=max(1, CHUNK_BYTES // (8 * max(1, len(moved)))),
        alternative="greater",
    )
    return float(found.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Corrects p values for their number, so that one false alarm in all is as rare as p says.

    Args:
        p_values: m of them.

    Returns:
        The corrected ones in the same order: the i-th smallest, i from 0, times m - i, but no
        smaller than the one before it and at most 1.

    Example:
        >>> holm([0.25, 0.0625, 0.125])
        [0.25, 0.1875, 0.25]

    Source: Holm, Scandinavian Journal of Statistics 1979.
    """
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    steps = np.minimum(1.0, p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty_like(p)
    corrected[order] = np.maximum.accumulate(steps)
    return corrected.tolist()
