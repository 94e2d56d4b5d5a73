"""The negative squared distance: the step, the thesis's radius, and what ranks after training."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
import reference
import reference_hard_negatives as slow
import tensorflow as tf
from small_batch import (
    BATCH_IDS,
    CATALOGUE,
    CORPUS,
    COUNTS,
    DRAWN,
    ITEMS,
    NUM_ITEMS,
    NUM_ROWS,
    QUERIES,
    Drawn,
    encode_items,
    exact_frequency,
    item_bias,
)

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.data import Interactions
from tfrs_negatives.evaluation import evaluate
from tfrs_negatives.index import DeltaIndex, LiveIndex, build_index
from tfrs_negatives.index.build.tuning import draw_probes
from tfrs_negatives.mining import mine_hard_negatives
from tfrs_negatives.model.two_tower import TwoTower
from tfrs_negatives.step.masks.keep import AccidentalHits, ScoreMargin
from tfrs_negatives.step.miners import WithinPositiveRadius
from tfrs_negatives.step.records import Miner
from tfrs_negatives.step.samplers import InBatch
from tfrs_negatives.step.score import ItemBias
from tfrs_negatives.step.task import Retrieval


def squared_distances(queries, items):
    """[Q, N] float64, one pair at a time."""
    queries, items = queries.astype(np.float64), items.astype(np.float64)
    return np.array([[np.sum((u - v) ** 2) for v in items] for u in queries])


class Seen(Miner):
    """Keeps what it is given where a test can see it, all candidates at once."""

    reads_scores = True

    def mine(self, scored, batch):
        self.given = scored
        return scored


def run(task, queries=QUERIES, items=ITEMS[:NUM_ROWS], **call):
    """The loss and its gradients: of the queries, the positives and what the task learns."""
    inputs = [tf.constant(queries), tf.constant(items)]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        ids = {"candidate_ids": BATCH_IDS[:NUM_ROWS], "encode_items": encode_items}
        loss = task(*inputs, **{**ids, "training": False, **call})
    return loss, tape.gradient(loss, [*inputs, *task.trainable_variables])


# ------------------------------------------------------------------ scores and the step


def test_scores_are_distances_also_of_the_positive():
    seen = Seen()
    bias = item_bias()
    pool = {"negatives": [InBatch(), Drawn(DRAWN)], "correct": None}
    options = {"similarity": "euclidean", "temperature": 0.3, "item_bias": bias}
    run(Retrieval(**pool, **options, miners=[seen]))
    vectors = np.concatenate([ITEMS[:NUM_ROWS], CORPUS[DRAWN]])
    ids = np.concatenate([BATCH_IDS[:NUM_ROWS], 100 + np.array(DRAWN)])
    expected = -squared_distances(QUERIES, vectors) / 0.3 + bias(tf.constant(ids)).numpy()
    np.testing.assert_allclose(seen.given.score, expected, rtol=1e-5, atol=1e-5)
    own = np.diag(expected[:, :NUM_ROWS])
    np.testing.assert_allclose(seen.given.positive_score, own, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("several", [False, True])
def test_gradients_are_central_differences_of_the_reference(several):
    rng = np.random.default_rng(3)
    queries = rng.normal(size=(NUM_ROWS, 3, QUERIES.shape[1])) if several else QUERIES
    queries = queries.astype(np.float32)
    options = {"similarity": "euclidean", "reduction": "mean"}
    task = Retrieval(**options, temperature=0.7, learn_temperature=True)

    def loss_of(queries, items, log_temperature):
        pool = reference.batch_columns(BATCH_IDS[:NUM_ROWS], items, NUM_ROWS)
        temperature = float(np.exp(log_temperature))
        return reference.retrieval_loss(queries, pool, **options, temperature=temperature)

    given = [queries, ITEMS[:NUM_ROWS], np.log(0.7)]
    loss, gradients = run(task, queries=queries)
    assert float(loss) == pytest.approx(loss_of(*given), rel=1e-5)
    for place, received in enumerate(gradients):

        def moved(x, place=place):
            return loss_of(*[x if i == place else given[i] for i in range(3)])

        expected = reference.numerical_gradient(moved, given[place])
        np.testing.assert_allclose(received, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("budget", [4 * NUM_ROWS * 2, 2**27], ids=["narrow blocks", "one block"])
def test_blocks_give_the_loss_and_the_gradients_of_all_at_once(budget):
    def task(*miners):
        return Retrieval(
            negatives=[InBatch(), Drawn(DRAWN)],
            frequency=exact_frequency(),
            # Both read scores, one of them the size of the positive's.
            masks=[ScoreMargin(relative=-0.2)],
            miners=[WithinPositiveRadius(slack=4.0), *miners],
            similarity="euclidean",
            temperature=0.6,
            learn_temperature=True,
            item_bias=item_bias(),
            logits_budget=budget,
        )

    seen = Seen()
    wanted, wanted_gradients = run(task(seen))
    dropped = NUM_ROWS * (NUM_ROWS - 1 + len(DRAWN)) - int(
        tf.reduce_sum(tf.cast(seen.given.keep, tf.int32))
    )
    assert dropped > 5
    loss, gradients = run(task())
    assert float(loss) == pytest.approx(float(wanted), rel=1e-6)
    for received, expected in zip(gradients, wanted_gradients, strict=True):
        received, expected = map(tf.convert_to_tensor, (received, expected))
        assert float(tf.reduce_max(tf.abs(expected))) > 1e-3
        np.testing.assert_allclose(received, expected, rtol=1e-5, atol=1e-6)


def test_on_unit_vectors_it_is_the_cosine_at_half_the_temperature():
    units = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (QUERIES, ITEMS[:NUM_ROWS])]
    seen, other = Seen(), Seen()
    loss, gradients = run(Retrieval(similarity="euclidean", temperature=0.4, miners=[seen]), *units)
    cosine = Retrieval(similarity="cosine", temperature=0.2, miners=[other])
    wanted, along = run(cosine, *units)
    assert float(loss) == pytest.approx(float(wanted), rel=1e-5)
    for ours, theirs in (("score", "score"), ("positive_score", "positive_score")):
        expected = getattr(other.given, theirs) - 2 / 0.4
        np.testing.assert_allclose(getattr(seen.given, ours), expected, atol=1e-5)
    # Gradients along the sphere are the same; a cosine has none off it.
    for ours, theirs, x in zip(gradients, along, units, strict=True):
        tangent = ours - x * tf.reduce_sum(ours * x, axis=1, keepdims=True)
        np.testing.assert_allclose(tangent, theirs, atol=1e-5)


def test_factorized_metrics_beside_it_are_an_error():
    metric = tf.keras.metrics.Mean()
    with pytest.raises(InputError, match=r"`metrics`: .*'euclidean'"):
        Retrieval(metrics=metric, similarity="euclidean")


# ------------------------------------------------------------------ the radius of the thesis


@pytest.mark.parametrize("farthest", ["own", "known"])
def test_the_radius_keeps_exactly_what_is_within_it_also_off_the_sphere(farthest):
    rng = np.random.default_rng(7)
    lengths = rng.uniform(0.3, 3.0, [2, NUM_ROWS, 1])
    queries, items = lengths * np.stack([QUERIES, ITEMS[:NUM_ROWS]])
    ids = np.arange(NUM_ROWS) + 100
    liked = np.array([[101, -1], [-1, -1], [103, 104], [100, -1], [-1, -1]])
    kept = {}
    for similarity in ("euclidean", "dot"):
        seen = Seen()
        task = Retrieval(
            masks=[AccidentalHits(more_positives="liked")],
            miners=[WithinPositiveRadius(farthest=farthest), seen],
            similarity=similarity,
            temperature=0.3,
        )
        inputs = queries.astype(np.float32), items.astype(np.float32)
        run(task, *inputs, candidate_ids=ids, features={"liked": tf.constant(liked)})
        kept[similarity] = seen.given.keep.numpy()
    for i in range(NUM_ROWS):
        more = [int(j) - 100 for j in liked[i] if j >= 0]
        radius = [items[i], *(items[more] if farthest == "known" else [])]
        inside = slow.radius_of_distances(queries[i], radius, items)
        expected = [j for j in inside if j != i and j not in more]
        assert np.flatnonzero(kept["euclidean"][i]).tolist() == expected
    # Here distance and inner product rank differently, or the test would say nothing.
    assert (kept["euclidean"] != kept["dot"]).any()
    assert kept["euclidean"].any()


# ------------------------------------------------------------------ after training

USERS = 20
RNG = np.random.default_rng(11)
USER_TABLE = (RNG.normal(size=(USERS, 4)) * RNG.uniform(0.2, 3, (USERS, 1))).astype(np.float32)
ITEM_TABLE = (RNG.normal(size=(NUM_ITEMS, 4)) * RNG.uniform(0.2, 3, (NUM_ITEMS, 1))).astype("f4")


def make_model(*, bias=False):
    def tower(name, table, first):
        ids = tf.keras.Input((), name=name, dtype=tf.int64)
        start = tf.keras.initializers.Constant(table)
        rows = tf.keras.layers.Embedding(*table.shape, embeddings_initializer=start)(ids - first)
        return tf.keras.Model(ids, rows)

    options = {"item_bias": ItemBias(CATALOGUE.ids, COUNTS)} if bias else {}
    task = Retrieval(similarity="euclidean", temperature=0.5, **options)
    return TwoTower(
        tower("user", USER_TABLE, 0), tower("item_id", ITEM_TABLE, 100), CATALOGUE, task
    )


def true_scores(model):
    """[Q, N] temperature * score: brute force over the tables."""
    bias = model.task.affinity.item_bias
    extra = 0.0 if bias is None else 0.5 * bias(tf.constant(CATALOGUE.ids)).numpy()
    return extra - squared_distances(USER_TABLE, ITEM_TABLE)


LENGTHS = np.square(USER_TABLE.astype(np.float64)).sum(axis=1)


@pytest.mark.parametrize("bias", [False, True])
def test_an_index_ranks_by_distance_and_so_do_its_changes(bias):
    model = make_model(bias=bias)
    users, order = {"user": np.arange(USERS)}, np.argsort(-true_scores(model), axis=1)
    for index in (build_index(model), LiveIndex.of(build_index(model))):
        scores, ids = index.top_k(users, k=NUM_ITEMS)
        assert ids.tolist() == (order + 100).tolist()
        # One inner product: what it leaves out is the same for all items of a query.
        expected = np.take_along_axis(true_scores(model), order, 1) + LENGTHS[:, None]
        np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)
    # An item that comes later is as far away as one that was there.
    known = np.arange(NUM_ITEMS) != 3
    later = model.item_vectors({"item_id": tf.constant([103])}).numpy()
    behind = build_index(
        model,
        ids=CATALOGUE.ids[known],
        vectors=model.item_vectors({"item_id": tf.constant(CATALOGUE.ids[known])}).numpy(),
    )
    changed = DeltaIndex(behind)
    changed.upsert([103], later)
    assert changed.top_k(users, k=NUM_ITEMS)[1].tolist() == (order + 100).tolist()


def test_an_evaluation_ranks_by_distance():
    model = make_model()
    held_out = Interactions({"user": np.arange(USERS)}, np.arange(USERS) % NUM_ITEMS + 100, "user")
    scores = true_scores(model)
    ranks = [int((row > row[u % NUM_ITEMS]).sum()) for u, row in enumerate(scores)]
    found = evaluate(model, held_out, ks=[3]).metrics
    assert found["recall_at_3"] == pytest.approx(np.mean(np.array(ranks) < 3))
    assert 0 < found["recall_at_3"] < 1


def test_probe_queries_made_of_items_are_queries():
    model = make_model()
    vectors = model.item_vectors({"item_id": tf.constant(CATALOGUE.ids)}).numpy()
    probes = draw_probes(model, vectors, None, count=NUM_ITEMS, seed=0).vectors
    np.testing.assert_array_equal(probes[:, -1], np.ones(NUM_ITEMS))
    # A query (2u, 1) is nearer to its own item than to a typical one.
    distances = squared_distances(probes[:, :-1] / 2, ITEM_TABLE)
    assert np.mean(np.diag(distances) < np.median(distances, axis=1)) > 0.8


def test_mined_scores_are_distances_and_the_margin_is_one_of_distances(tmp_path):
    model, scores = make_model(), true_scores(make_model())
    log = Interactions({"user": np.arange(USERS)}, np.arange(USERS) % NUM_ITEMS + 100, "user")
    mine_hard_negatives(model, log, out=tmp_path / "mined", relative_margin=0.5, num=NUM_ITEMS)
    table = pq.read_table(tmp_path / "mined").to_pydict()
    for user, row in enumerate(scores):
        own = row[user % NUM_ITEMS]
        assert table["positive_score"][user] == pytest.approx(own, rel=1e-4, abs=1e-4)
        expected = [100 + j for j in np.argsort(-row) if row[j] <= 1.5 * own]
        assert table["ids"][user] == expected
        wanted = sorted(row[row <= 1.5 * own], reverse=True)
        np.testing.assert_allclose(table["scores"][user], wanted, rtol=1e-4, atol=1e-4)


def test_a_saved_model_measures_the_same_distances(tmp_path):
    model = make_model(bias=True)
    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    assert loaded.similarity == "euclidean"
    users = {"user": tf.range(USERS, dtype=tf.int64)}
    np.testing.assert_array_equal(loaded.query_vectors(users), model.query_vectors(users))
