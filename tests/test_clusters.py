from __future__ import annotations

import itertools

import numpy as np
import pytest
import reference_batching as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrs_negatives.clustering import clusters as module
from tfrs_negatives.clustering.clusters import balanced_clusters, cluster_bounds
from tfrs_negatives.core.errors import InputError


def draw(num_rows: int, dim: int, seed: int = 0) -> np.ndarray:
    """Rows whose first columns vary most, so that a wrong axis shows."""
    scale = 2.0 ** -np.arange(dim)
    return (np.random.default_rng(seed).normal(size=(num_rows, dim)) * scale).astype(np.float32)


def members(order: np.ndarray, num_clusters: int) -> list[set[int]]:
    bounds = cluster_bounds(len(order), num_clusters)
    return [set(rows.tolist()) for rows in np.split(order, bounds[1:-1])]


# ------------------------------------------------------------------ sizes


@given(st.integers(1, 10**6), st.data())
def test_sizes_differ_by_at_most_one(num_rows: int, data: st.DataObject) -> None:
    num_clusters = data.draw(st.integers(1, min(num_rows, 2000)))
    bounds = cluster_bounds(num_rows, num_clusters)
    assert bounds.dtype == np.int64
    assert (bounds[0], bounds[-1], len(bounds)) == (0, num_rows, num_clusters + 1)
    assert set(np.diff(bounds)) <= {num_rows // num_clusters, -(-num_rows // num_clusters)}


def test_bounds_are_the_floors() -> None:
    assert cluster_bounds(7, 3).tolist() == [0, 2, 4, 7]
    # The product of rows and clusters is beyond int32, and beyond the integers of a float64.
    assert cluster_bounds(2**33 + 1, 2**21)[-2:].tolist() == [2**33 - 4096, 2**33 + 1]


@settings(deadline=None)
@given(st.integers(1, 150), st.integers(1, 4), st.data())
def test_the_rows_are_a_permutation(num_rows: int, dim: int, data: st.DataObject) -> None:
    order = balanced_clusters(draw(num_rows, dim), data.draw(st.integers(1, num_rows)))
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(num_rows))


@pytest.mark.parametrize(("num_rows", "num_clusters"), [(5, 1), (1, 1), (9, 9), (1009, 1009)])
def test_one_cluster_and_one_row_per_cluster(num_rows: int, num_clusters: int) -> None:
    order = balanced_clusters(draw(num_rows, 3), num_clusters)
    assert sorted(order.tolist()) == list(range(num_rows))


# ------------------------------------------------------------------ what the clusters are


@pytest.mark.parametrize(
    ("num_rows", "num_clusters"),
    [(40, 2), (41, 2), (40, 3), (60, 8), (61, 7), (97, 13), (30, 30), (31, 17), (100, 64)],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_agrees_with_the_recursion(num_rows: int, num_clusters: int, seed: int) -> None:
    vectors = draw(num_rows, 5, seed)
    expected = reference.clusters(
        vectors.astype(np.float64),
        num_clusters,
        np.random.Generator(np.random.PCG64(seed)).normal(size=5),
        power_steps=module.POWER_STEPS,
        means_steps=module.MEANS_STEPS,
    )
    assert members(balanced_clusters(vectors, num_clusters, seed=seed), num_clusters) == expected


@pytest.mark.parametrize(("num_rows", "num_clusters"), [(12, 4), (50, 7), (101, 101)])
def test_on_a_line_the_clusters_are_its_pieces(num_rows: int, num_clusters: int) -> None:
    values = draw(num_rows, 1)
    found = members(balanced_clusters(values, num_clusters), num_clusters)
    upwards = np.argsort(values[:, 0])
    assert found in (members(upwards, num_clusters), members(upwards[::-1], num_clusters))


@pytest.mark.parametrize("seed", range(5))
# Below some hundreds of rows numpy's partition happens to sort, and a wrong place would not show.
@pytest.mark.parametrize(("size", "left"), [(40, 3), (40, 37), (2000, 700)])
def test_a_split_that_has_settled_has_no_row_on_the_wrong_side(
    seed: int, size: int, left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MEANS_STEPS", 200)
    x = draw(size, 4, seed)
    x -= x.mean(axis=0)
    is_left = module._halve(x[None], left, np.ones(4))[0][0]
    assert is_left.sum() == left
    to_left, to_right = (
        ((x - x[side].mean(axis=0)) ** 2).sum(axis=1) for side in (is_left, ~is_left)
    )
    # With the centres held, exchanging any two rows would cost more, the two dearest included.
    moved = to_right - to_left
    assert moved[is_left].min() >= moved[~is_left].max() - 1e-5


def test_a_split_is_near_the_best_of_all() -> None:
    ratios = []
    for seed in range(20):
        vectors = draw(12, 3, seed).astype(np.float64)
        best = min(
            reference.sum_of_squares(vectors[list(part)])
            + reference.sum_of_squares(np.delete(vectors, list(part), axis=0))
            for part in itertools.combinations(range(12), 6)
        )
        left, right = balanced_clusters(vectors, 2, seed=seed).reshape(2, 6)
        found = sum(reference.sum_of_squares(vectors[rows]) for rows in (left, right))
        ratios.append(found / best)
    assert min(ratios) >= 1 - 1e-9
    assert np.mean(ratios) < 1.02


@pytest.mark.parametrize(("num_blobs", "size"), [(2, 50), (5, 20), (8, 16), (13, 11)])
def test_equal_blobs_are_found(num_blobs: int, size: int) -> None:
    rng = np.random.default_rng(num_blobs)
    # The corners of a simplex: no cut that keeps the blobs whole is better than another.
    blob = rng.permutation(np.repeat(np.arange(num_blobs), size))
    vectors = 10 * np.eye(num_blobs)[blob] + 0.1 * rng.normal(size=(len(blob), num_blobs))
    assert all(
        len(set(blob[list(rows)])) == 1
        for rows in members(balanced_clusters(vectors, num_blobs), num_blobs)
    )


def test_neighbours_in_the_tree_are_a_coarser_cluster() -> None:
    vectors = draw(1000, 4)
    fine = members(balanced_clusters(vectors, 16), 16)
    coarse = members(balanced_clusters(vectors, 4), 4)
    assert [set.union(*fine[4 * i : 4 * i + 4]) for i in range(4)] == coarse


# ------------------------------------------------------------------ repeatable, exact enough


def test_the_seed_decides() -> None:
    vectors = np.random.default_rng(0).normal(size=(500, 16))
    first, again, other = (balanced_clusters(vectors, 20, seed=seed) for seed in (5, 5, 6))
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()


@pytest.mark.parametrize("budget", [1, 1000, 40_000])
def test_the_size_of_a_chunk_does_not_matter(budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.random.default_rng(1).normal(size=(3001, 9))
    expected = balanced_clusters(vectors, 300)
    monkeypatch.setattr(module, "CHUNK_BYTES", budget)
    assert balanced_clusters(vectors, 300).tolist() == expected.tolist()


def test_the_input_stays_as_it_is() -> None:
    vectors = draw(100, 3) + 1
    before = vectors.copy()
    balanced_clusters(vectors, 7)
    assert (vectors == before).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64])
def test_any_type_of_numbers(dtype: type) -> None:
    # Whole numbers, which every type holds.
    vectors = np.random.default_rng(0).integers(-100, 100, size=(200, 6))
    expected = members(balanced_clusters(vectors, 10), 10)
    assert members(balanced_clusters(vectors.astype(dtype), 10), 10) == expected


@pytest.mark.parametrize("offset", [1e3, 1e6])
def test_a_common_offset_costs_no_digits(offset: float) -> None:
    # Multiples of 1/16 and below 64: the sum is exact in float32, so the rows are the same.
    vectors = np.random.default_rng(0).integers(-900, 900, size=(300, 8)) / np.float32(16)
    moved = vectors.astype(np.float32) + np.float32(offset)
    exact = (moved.astype(np.float64) - offset).astype(np.float32)
    assert (exact == vectors).all()
    assert members(balanced_clusters(moved, 20), 20) == members(balanced_clusters(vectors, 20), 20)


def test_a_node_far_from_the_mean_costs_no_digits() -> None:
    near = np.random.default_rng(0).integers(-8, 8, size=(64, 6)).astype(np.float32)
    far = np.concatenate([near + 2**19, near[::-1] - 2**19])
    alone = members(balanced_clusters(near, 8), 8)
    halves = members(balanced_clusters(far, 16), 16)
    assert {frozenset(rows) for rows in halves if max(rows) < 64} == {frozenset(r) for r in alone}


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_unit_does_not_matter(scale: float) -> None:
    vectors = draw(200, 5)
    expected = members(balanced_clusters(vectors, 10), 10)
    assert members(balanced_clusters(vectors * np.float32(scale), 10), 10) == expected


@pytest.mark.filterwarnings("error")
def test_equal_rows() -> None:
    assert sorted(balanced_clusters(np.ones((10, 3)), 4).tolist()) == list(range(10))
    value = np.random.default_rng(0).permutation(np.repeat(np.arange(4), 25))
    order = balanced_clusters(value[:, None] * np.ones(3), 4)
    assert [len(set(value[list(rows)])) for rows in members(order, 4)] == [1] * 4


# ------------------------------------------------------------------ errors


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("vectors", "num_clusters", "message"),
    [
        (np.ones(3), 1, r"`vectors`: expected an array \[n, D\] that is not empty.*\(3,\)"),
        (np.ones((2, 2, 2)), 1, r"`vectors`: expected an array \[n, D\]"),
        (np.ones((0, 4)), 1, r"`vectors`: expected .* not empty.*\(0, 4\)"),
        (np.ones((4, 0)), 1, r"`vectors`: expected .* not empty.*\(4, 0\)"),
        (np.array([[1.0], [np.nan]]), 1, "`vectors`: expected finite numbers"),
        (np.array([[np.inf], [-np.inf]]), 2, "`vectors`: expected finite numbers"),
        (np.array([[1e300], [0.0]]), 2, "`vectors`: expected finite numbers within float32"),
        (np.ones((3, 2)), 0, "`num_clusters`: expected from 1 to the 3 rows. Received: 0"),
        (np.ones((3, 2)), 4, "`num_clusters`: expected from 1 to the 3 rows. Received: 4"),
    ],
)
def test_bad_input(vectors: np.ndarray, num_clusters: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        balanced_clusters(vectors, num_clusters)


def test_no_rows_have_no_bounds() -> None:
    with pytest.raises(InputError, match=r"`num_rows`: .*at least 1.*: 0"):
        cluster_bounds(0, 1)
