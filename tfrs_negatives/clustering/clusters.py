"""Clusters of nearly equal size: the rows are halved again and again by balanced 2-means.

The nodes of one level of the tree that have the same size are split together, as one array
[g, s, D], so that neither the few large nodes of the top nor the many small ones of the bottom are
visited one by one in Python. Every node's rows are kept around their own mean: then the sum of the
left part alone says where both centres are, and no common offset costs float32 its digits.

Everything here waits for memory, so `einsum` is as fast as BLAS; and its sums depend neither on the
number of threads nor on which nodes stand beside each other.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tfrs_negatives.core.errors import bad_input

CHUNK_BYTES = 2**24
"""Bytes of rows that are copied at once; what is made of them may take four times as much.

Chunks from 4 to 64 MiB are equally fast.
"""

POWER_STEPS = 10
"""Steps of the power iteration that finds the first direction of a node."""

MEANS_STEPS = 10
"""The most times the centres of a node are computed anew."""


def cluster_bounds(num_rows: int, num_clusters: int) -> np.ndarray:
    """Returns where each cluster begins: the sizes differ by at most one.

        bound_i = floor(i n / k)

    Args:
        num_rows: n, at least 1.
        num_clusters: k, from 1 to n.

    Returns:
        [k + 1] int64, from 0 to n.

    Raises:
        InputError: if either is out of its range.

    Example:
        >>> cluster_bounds(10, 4)
        array([ 0,  2,  5,  7, 10])
    """
    if num_rows < 1:
        raise bad_input("num_rows", "at least 1", num_rows)
    if not 1 <= num_clusters <= num_rows:
        raise bad_input("num_clusters", f"from 1 to the {num_rows} rows", num_clusters)
    return np.arange(num_clusters + 1, dtype=np.int64) * num_rows // num_clusters


def balanced_clusters(vectors: np.ndarray, num_clusters: int, *, seed: int = 0) -> np.ndarray:
    """Orders the rows so that similar ones stand together, in clusters of nearly equal size.

    A node of the tree covers leaves [a, b) and is split at leaf (a + b) // 2 into two parts of
    fixed sizes, by Euclidean 2-means:

        left part = the rows with the largest <x, c_left - c_right>,    c = mean of a part

    from the principal direction of the node, until no row changes sides or `MEANS_STEPS` times.
    Memory: a float32 copy of the vectors, about 40 bytes per row and a few chunks.

    Args:
        vectors: [n, D], any numbers that float32 can hold.
        num_clusters: k, from 1 to n.
        seed: starts the search of the principal directions.

    Returns:
        [n] int64, a permutation of the rows. With `bounds = cluster_bounds(n, k)` cluster i is
        `order[bounds[i]:bounds[i + 1]]`. Neighbours are similar too: the leaves of a node of the
        tree are a coarser cluster.

    Raises:
        InputError: if the vectors are not [n, D], empty or not finite, or `num_clusters` is not
            from 1 to n.

    Example:
        >>> order = balanced_clusters(np.array([[0.0], [9.0], [1.0], [8.0]]), 2)
        >>> sorted(sorted(rows) for rows in order.reshape(2, 2).tolist())
        [[0, 2], [1, 3]]

    Source: Dahiya et al., WSDM 2023 (NGAME), the clustering of its mini-batches. Here the
        means are Euclidean (give unit vectors for the cosine), the number of clusters need not be a
        power of two, and a split starts from the principal direction, not from two random rows.
    """
    vectors = np.asarray(vectors)
    if vectors.ndim != 2 or not vectors.size:
        raise bad_input("vectors", "an array [n, D] that is not empty", f"shape {vectors.shape}")
    bounds = cluster_bounds(len(vectors), num_clusters)
    order = np.arange(len(vectors), dtype=np.int64)
    rows = _centred(vectors)
    start = np.random.Generator(np.random.PCG64(seed)).normal(size=rows.shape[1:])
    leaves = np.array([[0, num_clusters]])
    while len(leaves := leaves[leaves[:, 1] - leaves[:, 0] > 1]):
        middle = leaves.sum(axis=1) // 2
        for begins, size, left in _chunks(bounds[leaves], bounds[middle], rows[0].nbytes):
            _split_nodes(rows, order, begins, size, left, start)
        leaves = np.stack([leaves[:, 0], middle, middle, leaves[:, 1]], axis=1).reshape(-1, 2)
    return order


def _centred(vectors: np.ndarray) -> np.ndarray:
    """Returns a float32 copy around its mean, whose largest number is 1 or -1."""
    rows = np.empty(vectors.shape, np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        # The mean is subtracted before digits are dropped.
        mean = vectors.mean(axis=0, dtype=np.float64)
        np.subtract(vectors, mean, out=rows, casting="same_kind")
        largest = np.maximum(rows.max(), -rows.min())
    if not np.isfinite(largest):
        raise bad_input("vectors", "finite numbers within float32", "NaN, infinity or larger ones")
    # Sums of squares neither overflow nor vanish then, whatever the unit of the vectors.
    rows /= largest or 1
    return rows


def _chunks(
    nodes: np.ndarray, middle: np.ndarray, row_bytes: int
) -> Iterator[tuple[np.ndarray, int, int]]:
    """Yields the first rows [g] of nodes that have one size, that size, and that of the left part.

    Args:
        nodes: [m, 2], first row and end of each node of a level.
        middle: [m], where its right part begins.
        row_bytes: bytes of a row.
    """
    sizes = np.stack([nodes[:, 1] - nodes[:, 0], middle - nodes[:, 0]], axis=1)
    kinds, kind = np.unique(sizes, axis=0, return_inverse=True)
    for number, (size, left) in enumerate(kinds.tolist()):
        # numpy 2.0.0 gives `kind` as [m, 1].
        begins = nodes[kind.ravel() == number, 0]
        step = max(1, CHUNK_BYTES // (size * row_bytes))
        for first in range(0, len(begins), step):
            yield begins[first : first + step], size, left


def _split_nodes(
    rows: np.ndarray, order: np.ndarray, begins: np.ndarray, size: int, left: int, start: np.ndarray
) -> None:
    """Moves the left part of each node to its front, and both parts around their own means.

    Args:
        rows: [n, D] float32, each node around its mean; changed.
        order: [n] int64, which row of the input stands here; changed.
        begins: [g], the first row of each node.
        size: s, rows of a node.
        left: rows of its left part.
        start: [D], where the search of the principal direction starts.
    """
    at = begins[:, None] + np.arange(size)
    # The node that is alone may be as large as the input: it is not copied.
    x = rows[at] if len(begins) > 1 else rows[None, begins[0] : begins[0] + size]
    goes_left, sums = _halve(x, left, start)
    stands_left = np.arange(size) < left
    out, into = np.flatnonzero(stands_left & ~goes_left), np.flatnonzero(goes_left & ~stands_left)
    _swap(order, at.ravel()[out], at.ravel()[into])
    _swap(x.reshape(-1, x.shape[2]), out, into)
    x[:, :left] -= sums[:, None] / left
    x[:, left:] += sums[:, None] / (size - left)
    if len(begins) > 1:
        rows[at] = x


def _swap(rows: np.ndarray, first: np.ndarray, second: np.ndarray) -> None:
    """Exchanges rows, as many at once as the budget allows."""
    step = max(1, CHUNK_BYTES // rows[0].nbytes)
    for begin in range(0, len(first), step):
        here, there = first[begin : begin + step], second[begin : begin + step]
        rows[here], rows[there] = rows[there], rows[here]


def _halve(x: np.ndarray, left: int, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns which rows are the left part, [g, s] booleans, and the sums of those rows, [g, D].

    Args:
        x: [g, s, D] float32, each node around its mean.
        left: rows of the left part.
        start: [D], where the power iteration starts.
    """
    directions = np.tile(start, (len(x), 1))
    for _ in range(POWER_STEPS):
        directions = _sums(x, _scores(x, directions))
    goes_left = np.zeros(x.shape[:2], bool)
    for _ in range(MEANS_STEPS):
        order = np.argpartition(_scores(x, directions), x.shape[1] - left, axis=1)
        before, goes_left = goes_left, np.zeros_like(goes_left)
        np.put_along_axis(goes_left, order[:, -left:], True, axis=1)
        # A node that has settled stays as it is, whatever other nodes of the chunk still do.
        if (goes_left == before).all():
            break
        # The parts sum to zero, so the sum of one has the direction of c_left - c_right.
        directions = _sums(x, goes_left.astype(np.float32))
    return goes_left, directions


def _scores(x: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Returns <x, direction> [g, s], for directions [g, D] of any length."""
    exact = directions.astype(np.float64)
    lengths = np.maximum(np.linalg.norm(exact, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    return np.einsum("gsd,gd->gs", x, (exact / lengths).astype(np.float32))


def _sums(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns the weighted sums of the rows [g, D], for weights [g, s]."""
    return np.einsum("gs,gsd->gd", weights, x)
