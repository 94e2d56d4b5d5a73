"""The exact search of an evaluation, by ScaNN and by TensorFlow."""

import numpy as np
import pytest
import tensorflow as tf
from evaluation_cases import FakeModel, log

from tfrs_negatives.evaluation import best_items as module
from tfrs_negatives.evaluation import evaluate, ranks
from tfrs_negatives.evaluation.best_items import _by_scann, _by_tensorflow, best_items


def by_scann(vectors, byte_budget):
    pytest.importorskip("scann", reason="ScaNN is for Linux only")
    return _by_scann(vectors.numpy())


def by_tensorflow(vectors, byte_budget):
    return _by_tensorflow(vectors, max(1, byte_budget // (5 * len(vectors))))


SEARCHES = {"scann": by_scann, "tensorflow": by_tensorflow}
BUDGETS = {"one query": 1, "all": 2**26}
every_search = pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES.keys())


def draw(num_queries, num_items, *, levels):
    """Vectors of whole numbers, so that every order of summation gives the same score."""
    rng = np.random.default_rng(num_queries * 1000 + num_items)
    shapes = (num_queries, 3), (num_items, 3)
    return (rng.integers(-levels, levels + 1, s).astype(np.float32) for s in shapes)


# Below and above the blocks of TensorFlow's search, with and without a rest; one query, few, many.
@every_search
@pytest.mark.parametrize("num_queries", [1, 2, 33])
@pytest.mark.parametrize(("num_items", "length"), [(1, 1), (5, 5), (40, 1), (3200, 7), (3217, 90)])
@pytest.mark.parametrize("levels", [1, 50])
@pytest.mark.parametrize("budget", BUDGETS.values(), ids=BUDGETS.keys())
def test_it_is_a_stable_sort_of_all_scores(search, num_queries, num_items, length, levels, budget):
    queries, vectors = draw(num_queries, num_items, levels=levels)
    all_scores = queries @ vectors.T
    expected = np.argsort(-all_scores, axis=1, kind="stable")[:, :length]
    scores, rows = search(tf.constant(vectors), budget)(tf.constant(queries), length)
    np.testing.assert_array_equal(scores, np.take_along_axis(all_scores, expected, axis=1))
    np.testing.assert_array_equal(rows, expected)


@every_search
@pytest.mark.parametrize("num_queries", [1, 2, 3, 17, 257])
@pytest.mark.parametrize("num_items", [5, 100, 1003])
def test_equal_vectors_have_equal_scores(search, num_queries, num_items):
    rng = np.random.default_rng(num_items)
    one = rng.normal(size=(1, 33)).astype(np.float32)
    queries = tf.constant(rng.normal(size=(num_queries, 33)), tf.float32)
    scores, rows = search(tf.repeat(one, num_items, axis=0), 2**20)(queries, num_items)
    assert (scores == scores[:, :1]).all()
    np.testing.assert_array_equal(rows, np.tile(np.arange(num_items), (num_queries, 1)))


def test_processors_ask_scann_and_others_tensorflow(monkeypatch):
    vectors = tf.ones([2, 1])
    monkeypatch.setattr(module, "_by_scann", lambda _: "scann")
    monkeypatch.setattr(module, "_by_tensorflow", lambda _, size: ("tensorflow", size))
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: name)
    assert best_items(vectors, byte_budget=35) == "scann"
    with monkeypatch.context() as patch:
        patch.setattr(tf.config, "list_logical_devices", lambda kind: [kind])
        # Two items take ten bytes of a query.
        assert best_items(vectors, byte_budget=35) == ("tensorflow", 3)
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda _: None)
    assert best_items(vectors, byte_budget=1) == ("tensorflow", 1)


@every_search
@pytest.mark.parametrize("byte_budget", [1, 4000, 2**26])
@pytest.mark.parametrize("marks", [1, 2100, 2**22])
def test_ranks_do_not_depend_on_the_search_or_the_chunks(search, byte_budget, marks, monkeypatch):
    rng = np.random.default_rng(5)
    model = FakeModel(rng.integers(-2, 3, (40, 4)), rng.integers(-2, 3, (700, 4)))
    pairs = rng.integers(0, [40, 700], (900, 2))
    test, seen = log(*pairs[:200]), log(*pairs[200:])
    wanted = evaluate(model, test, ks=(3, 20), exclude=seen, train=seen)
    monkeypatch.setattr(ranks, "best_items", lambda v, *, byte_budget: search(v, byte_budget))
    monkeypatch.setattr(ranks, "MARKS", marks)
    result = evaluate(model, test, ks=(3, 20), exclude=seen, train=seen, byte_budget=byte_budget)
    assert result.metrics == wanted.metrics
    for name, values in wanted.per_query.items():
        np.testing.assert_array_equal(result.per_query[name], values)


def test_a_query_with_a_long_history_does_not_lengthen_the_lists_of_all(monkeypatch):
    lengths = []

    def watched(vectors, **budget):
        search = best_items(vectors, **budget)

        def remember(queries, length):
            lengths.append((len(queries), length))
            return search(queries, length)

        return remember

    rng = np.random.default_rng(0)
    model = FakeModel(rng.normal(size=(9, 4)), rng.normal(size=(600, 4)))
    test = log(*[(user, 599 - user) for user in range(9)])
    seen = log(*[(0, row) for row in range(500)])
    monkeypatch.setattr(ranks, "best_items", watched)
    evaluate(model, test, ks=(5,), exclude=seen, byte_budget=3 * 6 * ranks.PLACE_BYTES)
    # The query with 500 seen items and one wanted goes alone; of the others three have room.
    assert lengths == [(1, 506), (3, 6), (3, 6), (2, 6)]
