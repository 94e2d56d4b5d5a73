from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_recommenders as tfrs
from evaluation_cases import FakeModel, from_scores, log
from reference_metrics import evaluate_slowly

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.data.interactions import Interactions
from tfrs_negatives.evaluation import MostPopular, RandomRanking, evaluate


def random_case(seed, *, num_queries, num_items, num_test, num_seen, levels):
    """Scores are small integers, exact in float32; few levels make many ties."""
    rng = np.random.default_rng(seed)
    queries = rng.integers(-levels, levels + 1, (num_queries, 3))
    vectors = rng.integers(-levels, levels + 1, (num_items, 3))

    def events(n):
        items = np.minimum(rng.zipf(1.3, n) - 1, num_items - 1)
        return np.stack([rng.integers(0, num_queries, n), items], axis=1)

    test = np.concatenate(
        [
            events(num_test),
            np.stack(
                [rng.integers(0, num_queries, num_test), rng.integers(0, num_items, num_test)], 1
            ),
        ]
    )
    return FakeModel(queries, vectors), queries @ vectors.T, test, events(num_seen)


def sets_by_query(events):
    sets = {}
    for query, row in events.tolist():
        sets.setdefault(query, set()).add(row)
    return sets


CASES = {
    "ties": {"num_queries": 40, "num_items": 60, "num_test": 150, "num_seen": 300, "levels": 1},
    "few ties": {
        "num_queries": 40,
        "num_items": 60,
        "num_test": 100,
        "num_seen": 100,
        "levels": 99,
    },
    "all relevant": {
        "num_queries": 3,
        "num_items": 20,
        "num_test": 60,
        "num_seen": 30,
        "levels": 2,
    },
    "blocks": {"num_queries": 20, "num_items": 999, "num_test": 90, "num_seen": 600, "levels": 3},
    "blocks, tied": {
        "num_queries": 9,
        "num_items": 700,
        "num_test": 90,
        "num_seen": 90,
        "levels": 1,
    },
}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("byte_budget", [1, 2**26])
def test_equals_the_slow_reference(case, seed, byte_budget):
    model, scores, test, seen = random_case(seed, **case)
    ks = (1, 2, 7, 20)
    counts = np.bincount(seen[:, 1], minlength=case["num_items"])
    expected = evaluate_slowly(scores, sets_by_query(test), sets_by_query(seen), counts, ks)
    result = evaluate(
        model, log(*test), ks=ks, exclude=log(*seen), train=log(*seen), byte_budget=byte_budget
    )
    assert result.metrics == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_every_metric_by_hand():
    # The list of query 0 is 0 1 2 3 4, that of query 1 is 4 3 2 1 0.
    model = from_scores([[5, 4, 3, 2, 1], [1, 2, 3, 4, 5]])
    # Query 0 looks for 1, 3 and 4; query 1 for 4.
    test = log((0, 1), (0, 3), (0, 4), (1, 4))
    # 12 events: item 0 has 4 (events 0-3, head), 1 has 3 (from event 4, middle), 2 has 3 (from
    # event 7, middle), 3 has 2 (from event 10, tail), 4 has none.
    train = log(*[(7, 0)] * 4, *[(7, 1)] * 3, *[(8, 2)] * 3, *[(9, 3)] * 2)
    result = evaluate(model, test, ks=[2], train=train)
    ideal = 1 + 1 / math.log2(3)
    expected = {
        "recall_at_2": (1 / 3 + 1) / 2,
        "normalized_recall_at_2": (1 / 2 + 1) / 2,
        "precision_at_2": (1 / 2 + 1 / 2) / 2,
        "hit_rate_at_2": 1.0,
        "ndcg_at_2": (1 / math.log2(3) / ideal + 1) / 2,
        "mrr_at_2": (1 / 2 + 1) / 2,
        "all_hits_mrr_at_2": (1 / 2 + 1) / 2,
        "map_at_2": ((1 / 2) / 2 + 1) / 2,
        # Of the others 0 and 2, item 1 of query 0 is before one, items 3 and 4 before none.
        "partial_auc_at_2": (1 / 6 + 1) / 2,
        "top_k_accuracy_at_2": 2 / 4,
        "coverage_at_2": 4 / 5,  # lists 0 1 and 4 3
        "mean_popularity_at_2": (4 + 3 + 0 + 2) / 4,
        "middle_recall_at_2": 1.0,  # item 1 of query 0
        "tail_recall_at_2": 0.0,  # item 3 of query 0
        "unseen_recall_at_2": (0 + 1) / 2,  # item 4 of both
    }
    assert result.metrics == pytest.approx(expected, rel=1e-12)
    assert result.counts == {
        "num_queries": 2,
        "num_skipped_queries": 0,
        "num_pairs": 4,
        "num_excluded_pairs": 0,
        "num_head_pairs": 0,
        "num_middle_pairs": 1,
        "num_tail_pairs": 1,
        "num_unseen_pairs": 2,
    }
    assert result.per_query["recall_at_2"].tolist() == pytest.approx([1 / 3, 1])
    assert result.per_query["recall_at_2"].dtype == np.float32


@pytest.mark.parametrize("num_items", [31, 500])
@pytest.mark.parametrize("vector", [[0.0, 0.0, 0.0], [0.3, -1.7, 0.2]])
def test_collapsed_model_finds_nothing(num_items, vector):
    rng = np.random.default_rng(0)
    model = FakeModel(rng.normal(size=(6, 3)), np.tile(vector, (num_items, 1)))
    test = log(*[(q, r) for q in range(6) for r in range(3)])
    metrics = evaluate(model, test, ks=(5,)).metrics
    assert metrics["recall_at_5"] == 0
    assert metrics["ndcg_at_5"] == 0
    assert metrics["top_k_accuracy_at_5"] == 0
    assert metrics["coverage_at_5"] == 5 / num_items


def test_a_neighbour_one_ulp_below_does_not_pass():
    high = np.float32(1)
    low = np.nextafter(high, np.float32(0))
    assert evaluate(from_scores([[low, high]]), log((0, 1)), ks=[1]).metrics["recall_at_1"] == 1
    assert evaluate(from_scores([[low, high]]), log((0, 0)), ks=[1]).metrics["recall_at_1"] == 0


def test_excluded_items_are_neither_recommended_nor_asked_for():
    model = from_scores([[5, 4, 3, 2, 1], [5, 4, 3, 2, 1], [5, 4, 3, 2, 1]])
    test = log((0, 0), (0, 2), (1, 0), (1, 1), (2, 1))
    exclude = log((0, 0), (0, 1), (1, 0), (1, 1), (-3, 2), (9, 1))
    result = evaluate(model, test, ks=[1, 5], exclude=exclude)
    assert result.metrics["recall_at_1"] == pytest.approx((1 + 0) / 2)  # query 1 is skipped
    assert result.metrics["precision_at_5"] == pytest.approx((1 / 5 + 1 / 5) / 2)
    assert result.counts["num_queries"] == 2
    assert result.counts["num_skipped_queries"] == 1
    assert result.counts["num_pairs"] == 2
    assert result.counts["num_excluded_pairs"] == 3


def test_fewer_than_k_left_recommends_only_what_is_left():
    model = from_scores([[5, 4, 3, 2, 1]])
    seen = log((0, 0), (0, 1), (0, 2))
    metrics = evaluate(model, log((0, 4)), ks=[4], exclude=seen, train=seen).metrics
    assert metrics["coverage_at_4"] == 2 / 5
    assert metrics["mean_popularity_at_4"] == 0  # items 3 and 4 only
    assert metrics["mrr_at_4"] == 1 / 2


def test_metrics_without_data_are_absent():
    model = from_scores([[3, 2, 1]])
    without = evaluate(model, log((0, 0)), ks=[1])
    assert not any(
        "popularity" in n or n.startswith(("head", "middle", "tail", "unseen"))
        for n in without.metrics
    )
    assert set(without.counts) == {
        "num_queries",
        "num_skipped_queries",
        "num_pairs",
        "num_excluded_pairs",
    }
    train = log((5, 0), (5, 1))
    assert "unseen_recall_at_1" not in evaluate(model, log((0, 0)), ks=[1], train=train).metrics
    assert evaluate(model, log((0, 2)), ks=[1], train=train).metrics["unseen_recall_at_1"] == 0


def test_equal_events_count_once_and_weights_do_not():
    model = from_scores([[3, 2, 1], [1, 2, 3]])
    once = evaluate(model, log((0, 0), (0, 2), (1, 0)), ks=[1])
    weights = np.array([1, 9, 5, 5], np.float32)
    twice = evaluate(model, log((0, 0), (0, 2), (0, 2), (1, 0), weights=weights), ks=[1])
    assert once.metrics == twice.metrics
    assert twice.counts["num_pairs"] == 3


def test_without_query_key_every_event_is_a_query_with_its_own_context():
    scores = np.array([[3, 2, 1], [1, 3, 2]])
    model = from_scores(scores)
    model.query_vectors = lambda f: tf.gather(model.queries, tf.cast(f["hour"], tf.int64))
    test = Interactions(
        {"hour": np.array([0, 1, 1]), "user_id": np.array([5, 5, 5])}, np.array([100, 101, 102])
    )
    result = evaluate(model, test, ks=[1])
    assert result.per_query["recall_at_1"].tolist() == [1, 1, 0]
    with pytest.raises(InputError, match=r"`exclude`: .*query_key"):
        evaluate(model, test, ks=[1], exclude=log((0, 0)))


def test_a_query_has_the_features_of_its_first_event():
    model = from_scores([[3, 2, 1], [1, 2, 3]])
    model.query_vectors = lambda f: tf.gather(model.queries, tf.cast(f["hour"], tf.int64))
    users = np.array(["b", "a", "b", "a"])
    test = Interactions(
        {"hour": np.array([1, 0, 0, 1]), "user_id": users},
        np.array([102, 100, 101, 101]),
        "user_id",
    )
    result = evaluate(model, test, ks=[1])
    assert result.per_query["recall_at_1"].tolist() == [0.5, 0.5]
    seen = Interactions({"user_id": np.array(["c", "b"])}, np.array([100, 102]), "user_id")
    # b has seen 102: its list begins with 101.
    result = evaluate(model, test, ks=[1], exclude=seen)
    assert result.per_query["recall_at_1"].tolist() == [0.5, 1]
    assert result.counts["num_excluded_pairs"] == 1


@pytest.mark.parametrize("k", [1, 5, 50])
def test_top_k_accuracy_is_that_of_tfrs(k):
    rng = np.random.default_rng(3)
    queries, vectors = rng.normal(size=(30, 8)), rng.normal(size=(400, 8))
    events = np.unique(np.stack([rng.integers(0, 30, 200), rng.integers(0, 400, 200)], 1), axis=0)
    ours = evaluate(FakeModel(queries, vectors), log(*events), ks=[k]).metrics
    corpus = tf.data.Dataset.from_tensor_slices(np.float32(vectors)).batch(64)
    theirs = tfrs.metrics.FactorizedTopK(corpus, ks=(k,))
    theirs.update_state(
        tf.constant(queries[events[:, 0]], tf.float32),
        tf.constant(vectors[events[:, 1]], tf.float32),
    )
    assert ours[f"top_k_accuracy_at_{k}"] == pytest.approx(theirs.result()[0].numpy(), rel=1e-6)


def test_items_pass_the_tower_in_batches_in_catalogue_order():
    model = from_scores(np.arange(50)[None, ::-1])
    sizes = []
    towers = model.item_vectors
    model.item_vectors = lambda f: sizes.append(len(f["item_id"])) or towers(f)
    metrics = evaluate(model, log((0, 2)), ks=[5], batch_size=20).metrics
    assert metrics["mrr_at_5"] == pytest.approx(1 / 3)
    assert sizes == [20, 20, 10]


def test_most_popular_is_what_one_would_serve():
    items = ItemCatalogue(100 + np.arange(4))
    train = log((0, 2), (1, 2), (2, 2), (0, 1), (1, 3))
    popular = MostPopular(items, train.item_counts(items))
    test = log((0, 3), (1, 1), (2, 0))
    # 2 first, then 1 and 3 in catalogue order, 0 last; user 0 has seen 2 and 1, user 1 2 and 3.
    metrics = evaluate(popular, test, ks=[1, 2], exclude=train, train=train).metrics
    assert metrics["recall_at_1"] == pytest.approx(2 / 3)
    metrics = evaluate(popular, test, ks=[1, 2], train=train).metrics
    assert (metrics["recall_at_1"], metrics["recall_at_2"]) == (0, pytest.approx(1 / 3))
    assert metrics["mean_popularity_at_1"] == 3
    with pytest.raises(InputError, match="`counts`: expected 4 numbers"):
        MostPopular(items, np.ones(3))


def test_random_ranking_finds_k_of_n_and_covers_all():
    num_items, num_queries, k = 200, 3000, 20
    items = ItemCatalogue(100 + np.arange(num_items))
    rng = np.random.default_rng(0)
    events = np.stack([np.arange(num_queries), rng.integers(0, num_items, num_queries)], 1)
    first = evaluate(RandomRanking(items, seed=4), log(*events), ks=[k])
    again = evaluate(RandomRanking(items, seed=4), log(*events), ks=[k], batch_size=64)
    other = evaluate(RandomRanking(items, seed=5), log(*events), ks=[k])
    share = k / num_items
    error = math.sqrt(share * (1 - share) / num_queries)
    assert first.metrics["recall_at_20"] == pytest.approx(share, abs=4 * error)
    assert first.metrics["coverage_at_20"] == 1
    np.testing.assert_array_equal(first.per_query["recall_at_20"], again.per_query["recall_at_20"])
    assert (first.per_query["recall_at_20"] != other.per_query["recall_at_20"]).mean() > 0.1


def test_random_ranking_reads_any_features():
    baseline = RandomRanking(ItemCatalogue(["a", "b"]))
    features = {
        "name": tf.constant(["x", "y", "x"]),
        "age": tf.constant([1.5, 1.5, 1.5]),
        "tags": tf.constant([[1, 2], [1, 2], [1, 3]]),
    }
    signs = baseline.query_vectors(features).numpy()
    assert set(np.unique(signs)) == {-1, 1}
    assert len(np.unique(signs, axis=0)) == 3


@pytest.mark.parametrize("ks", [(), (0,), (-1, 2), (1.5,), 3, "10", None])
def test_bad_ks(ks):
    with pytest.raises(InputError, match="`ks`: expected a list of positive integers"):
        evaluate(from_scores([[1, 2]]), log((0, 0)), ks=ks)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ks": (1, 4)}, "`ks`: expected at most 3, the number of items. Received: 4"),
        ({"test": log()}, "`test`: expected at least one event"),
        ({"train": log()}, "`train`: expected at least one event"),
        ({"exclude": log((0, 0))}, "`exclude`: expected a log that leaves something to find"),
        ({"test": log((0, 7))}, "`item_ids`: expected only items of the catalogue"),
        ({"exclude": log((0, 7))}, "`item_ids`: expected only items of the catalogue"),
        ({"batch_size": 0}, "`batch_size`: expected a positive integer"),
        ({"byte_budget": 0}, "`byte_budget`: expected a positive integer"),
        (
            {"exclude": Interactions({"u": np.array([1])}, np.array([100]))},
            "`exclude`: .* 'user_id'",
        ),
        (
            {"exclude": Interactions({"user_id": np.array(["1"])}, np.array([100]))},
            "`exclude`: expected 'user_id' of dtype int64",
        ),
        ({"model": object()}, "`model`: expected a RetrievalModel.*without items, query_vectors"),
    ],
)
def test_bad_input(arguments, message):
    arguments = {"model": from_scores([[1, 2, 3]]), "test": log((0, 0)), "ks": [1], **arguments}
    with pytest.raises(InputError, match=message):
        evaluate(**arguments)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_vectors_that_are_not_finite_name_the_tower(bad):
    vectors = np.ones((3, 2))
    vectors[1, 0] = bad
    with pytest.raises(InputError, match=rf"`item_vectors`: .* {bad} for the item 101"):
        evaluate(FakeModel(np.ones((2, 2)), vectors), log((0, 0)), ks=[1])
    with pytest.raises(InputError, match=rf"`query_vectors`: .* {bad} for the query 1"):
        evaluate(FakeModel(vectors[:2], np.ones((3, 2))), log((0, 0), (1, 0)), ks=[1])


def test_scores_that_overflow_are_refused():
    # 1e30 * 1e30 is infinite in float32, and the sum of both signs is NaN.
    with pytest.raises(InputError, match="inner products within float32"):
        evaluate(FakeModel([[1e30, 1e30]], [[1e30, -1e30], [1, 1]]), log((0, 1)), ks=[1])


def test_progress_shows_a_bar(capsys):
    evaluate(from_scores([[1, 2, 3]]), log((0, 0)), ks=[1], progress=True)
    assert "Ranking the catalogue" in capsys.readouterr().out
    evaluate(from_scores([[1, 2, 3]]), log((0, 0)), ks=[1])
    assert capsys.readouterr().out == ""
