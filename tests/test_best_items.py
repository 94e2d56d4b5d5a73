"""The exact search of an evaluation, by ScaNN and by TensorFlow, and what all rooms pick with."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from evaluation_cases import FakeModel, log
from hypothesis import given
from hypothesis import strategies as st
from reference_metrics import evaluate_slowly

from tfrs_negatives.evaluation import evaluate, ranks
from tfrs_negatives.evaluation.held_out import hold_out
from tfrs_negatives.model.top_k import best_columns, best_items, best_of

BUDGETS = {"one query": 1, "all": 2**26}


@pytest.fixture(params=["scann", "not installed", "a GPU"])
def every_search(request, monkeypatch):
    """ScaNN answers on processors; where it is not, or there is a GPU, TensorFlow does."""
    if request.param == "scann":
        pytest.importorskip("scann", reason="ScaNN is for Linux only")
    elif request.param == "not installed":
        monkeypatch.setitem(sys.modules, "scann", None)
    else:
        # It is there, but has nothing that could answer.
        monkeypatch.setitem(sys.modules, "scann", SimpleNamespace(__spec__="installed"))
        monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: [kind])


def draw(num_queries, num_items, *, levels):
    """Vectors of whole numbers, so that every order of summation gives the same score."""
    rng = np.random.default_rng(num_queries * 1000 + num_items)
    shapes = (num_queries, 3), (num_items, 3)
    return (rng.integers(-levels, levels + 1, s).astype(np.float32) for s in shapes)


# Below and above the blocks of TensorFlow's search, with and without a rest; one query, few, many.
@pytest.mark.usefixtures("every_search")
@pytest.mark.parametrize("num_queries", [1, 2, 33])
@pytest.mark.parametrize(("num_items", "length"), [(1, 1), (5, 5), (40, 1), (3200, 7), (3217, 90)])
@pytest.mark.parametrize("levels", [1, 50])
@pytest.mark.parametrize("budget", BUDGETS.values(), ids=BUDGETS.keys())
def test_it_is_a_stable_sort_of_all_scores(num_queries, num_items, length, levels, budget):
    queries, vectors = draw(num_queries, num_items, levels=levels)
    all_scores = queries @ vectors.T
    expected = np.argsort(-all_scores, axis=1, kind="stable")[:, :length]
    scores, rows = best_items(vectors, byte_budget=budget)(queries, length)
    np.testing.assert_array_equal(scores, np.take_along_axis(all_scores, expected, axis=1))
    np.testing.assert_array_equal(rows, expected)


@pytest.mark.usefixtures("every_search")
@pytest.mark.parametrize("num_queries", [1, 2, 3, 17, 257])
@pytest.mark.parametrize("num_items", [5, 100, 1003])
def test_equal_vectors_have_equal_scores(num_queries, num_items):
    rng = np.random.default_rng(num_items)
    one = rng.normal(size=(1, 33)).astype(np.float32)
    queries = rng.normal(size=(num_queries, 33)).astype(np.float32)
    search = best_items(np.repeat(one, num_items, axis=0), byte_budget=2**20)
    scores, rows = search(queries, num_items)
    assert (scores == scores[:, :1]).all()
    np.testing.assert_array_equal(rows, np.tile(np.arange(num_items), (num_queries, 1)))


@pytest.mark.usefixtures("every_search")
@pytest.mark.parametrize("byte_budget", [1, 4000, 2**26])
@pytest.mark.parametrize("marks", [1, 2100, 2**22])
def test_ranks_do_not_depend_on_the_search_or_the_chunks(byte_budget, marks, monkeypatch):
    rng = np.random.default_rng(5)
    model = FakeModel(rng.integers(-2, 3, (40, 4)), rng.integers(-2, 3, (700, 4)))
    pairs = rng.integers(0, [40, 700], (900, 2))
    test, seen = log(*pairs[:200]), log(*pairs[200:])
    monkeypatch.setattr(ranks, "MARKS", marks)
    result = evaluate(model, test, ks=(3, 20), exclude=seen, train=seen, byte_budget=byte_budget)
    chosen, known = ({user: set() for user in range(40)} for _ in range(2))
    for place, (user, row) in enumerate(pairs.tolist()):
        (chosen if place < 200 else known)[user].add(row)
    scores, counts = model.queries @ model.vectors.T, np.bincount(pairs[200:, 1], minlength=700)
    wanted = evaluate_slowly(scores, chosen, known, counts, (3, 20))
    assert result.metrics == pytest.approx(wanted, rel=1e-12)


def test_a_query_with_a_long_history_does_not_lengthen_the_lists_of_all():
    lengths, rng = [], np.random.default_rng(0)
    vectors = rng.normal(size=(9, 4)).astype(np.float32), rng.normal(size=(600, 4))
    model = FakeModel(*vectors)
    search = best_items(np.float32(vectors[1]), byte_budget=2**20)

    def watched(queries, length):
        lengths.append((len(queries), length))
        return search(vectors[0][queries], length)

    test = log(*[(user, 599 - user) for user in range(9)])
    seen = log(*[(0, row) for row in range(500)])
    ranks.rank_lists(
        watched,
        hold_out(test, model.items, exclude=seen),
        ks=[5],
        num_items=600,
        chunk_size=4096,
        byte_budget=3 * 6 * ranks.PLACE_BYTES,
    )
    # The query with 500 seen items and one wanted goes alone; of the others three have room.
    assert lengths == [(1, 506), (3, 6), (3, 6), (2, 6)]


columns = st.lists(st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 2.0]), max_size=8)


@given(columns, st.integers(1, 10))
def test_what_is_picked_is_a_stable_sort_without_the_columns_that_are_dropped(scores, k):
    order = sorted(range(len(scores)), key=lambda place: -scores[place])
    kept = [place for place in order if scores[place] > -np.inf][:k]
    wanted = kept + [-1] * (k - len(kept))
    row = np.array([scores], np.float32).reshape(1, len(scores))
    names = 10 + np.arange(len(scores))
    for found in (best_columns(row, k), best_of(row, k)):
        assert np.asarray(found[1]).tolist() == [wanted]
        assert np.asarray(found[0]).tolist() == [[scores[p] if p >= 0 else -np.inf for p in wanted]]
    for pick in (best_columns, best_of):
        for rows in (names, names[None]):
            expected = [10 + place if place >= 0 else -1 for place in wanted]
            assert np.asarray(pick(row, k, rows)[1]).tolist() == [expected]
