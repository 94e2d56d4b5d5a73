"""The order of the events of one epoch: clusters in pieces, pieces shuffled, every event once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from tfrs_negatives.core.errors import bad_input

Schedule: TypeAlias = "Callable[[int], int]"


def doubling(start: int = 1, *, every: int = 30, most: int | None = None) -> Schedule:
    """The curriculum of NGAME: epoch -> cluster size, doubled every so many epochs.

        size(epoch) = start 2^(epoch // every), at most `most`

    Args:
        start: size in queries of the first epochs; 1 is a random order.
        every: epochs between two doublings.
        most: the largest size; None does not limit it.

    Returns:
        The schedule.

    Raises:
        InputError: if a number is below 1.

    Example:
        >>> size = doubling(every=2, most=4)
        >>> [size(epoch) for epoch in range(7)]
        [1, 1, 2, 2, 4, 4, 4]

    Source: Dahiya et al., WSDM 2023; every 30 epochs from 1 on is the thesis's.
    """
    for name, number in (("start", start), ("every", every), ("most", most)):
        if number is not None and number < 1:
            raise bad_input(name, "at least 1", number)

    def size(epoch: int) -> int:
        doubled = start << (epoch // every)
        return doubled if most is None else min(doubled, most)

    return size


def clustered_order(
    query_of_event: np.ndarray,
    cluster_of_query: np.ndarray,
    *,
    piece_size: int,
    random_share: float,
    seed: tuple[int, ...],
) -> np.ndarray:
    """Orders the events so that those of similar queries stand together, in pieces.

    The T events of a cluster are dealt like cards to ceil(T / piece_size) pieces, user by user, so
    that a piece has as few events of one query as can be. Pieces of all clusters, and single events
    for the random share, are put in random order.

    Args:
        query_of_event: [E] int, from 0 to Q - 1.
        cluster_of_query: [Q] int, from 0 on.
        piece_size: the most events of a piece.
        random_share: share of the events that stand alone, in [0, 1].
        seed: of the order; the same numbers give the same order.

    Returns:
        [E] int64, a permutation of the events. Takes about 50 bytes per event while it is made.

    Example:
        >>> order = clustered_order(
        ...     np.array([0, 1, 2, 3]), np.array([0, 1, 0, 1]),
        ...     piece_size=2, random_share=0.0, seed=(0,))
        >>> sorted(sorted(piece) for piece in order.reshape(2, 2).tolist())
        [[0, 2], [1, 3]]

    Source: Dahiya et al., WSDM 2023, with one event per query and epoch. Here every event
        comes once in an epoch.
    """
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(query_of_event))
    num_alone = round(random_share * len(shuffled))
    alone, rest = shuffled[:num_alone], shuffled[num_alone:]
    # Queries in another order every epoch: which ones meet in a piece depends on it.
    turn = rng.permutation(len(cluster_of_query))
    query = query_of_event[rest]
    by_turn = np.argsort(cluster_of_query[query] * len(turn) + turn[query], kind="stable")
    rest = rest[by_turn]
    cluster = cluster_of_query[query_of_event[rest]]
    piece = num_alone + _dealt(cluster, piece_size)
    piece = np.concatenate([np.arange(num_alone), piece])
    place = rng.permutation(piece.max(initial=-1) + 1)[piece]
    return np.concatenate([alone, rest])[np.argsort(place, kind="stable")]


def _dealt(cluster: np.ndarray, piece_size: int) -> np.ndarray:
    """Returns [m]: the piece of each event, for sorted clusters; pieces of a cluster are even."""
    sizes = np.bincount(cluster)
    pieces = -(-sizes // piece_size)
    number = np.arange(len(cluster)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    first = np.cumsum(pieces) - pieces
    return first[cluster] + number % pieces[cluster]
