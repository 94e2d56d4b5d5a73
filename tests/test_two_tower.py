"""The model as Keras sees it: fit, evaluate, save, resume, and what it says."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import reference
import tensorflow as tf

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.model.optimizers import SparseAdam
from tfrs_negatives.model.recipes import in_batch, mixed_negative_sampling
from tfrs_negatives.model.two_tower import FirstStepReport, TwoTower, describe_last_step
from tfrs_negatives.step.frequency import StreamingFrequency
from tfrs_negatives.step.masks.keep import AccidentalHits
from tfrs_negatives.step.samplers import CrossBatch, InBatch, IndexStream, Uniform
from tfrs_negatives.step.score import ItemBias
from tfrs_negatives.step.task import Retrieval

N, USERS, D = 9, 6, 4
RNG = np.random.default_rng(0)
LOG_USERS = RNG.integers(0, USERS, size=22)
LOG_ITEMS = RNG.integers(0, N, size=22)


def titles(rows):
    return np.array([f"item {row}" for row in rows])


ITEMS = ItemCatalogue(titles(range(N)), {"year": np.arange(N) + 1990.0}, item_key="title")


def embedding(rows, seed):
    start = tf.keras.initializers.RandomNormal(seed=seed)
    return tf.keras.layers.Embedding(rows, D, embeddings_initializer=start)


def query_tower(kind="functional"):
    user = tf.keras.Input((), name="user_id", dtype=tf.int64)
    if kind == "sequential":
        return tf.keras.Sequential([user, embedding(USERS, 1)], name="query_tower")
    return tf.keras.Model({"user_id": user}, embedding(USERS, 1)(user), name="query_tower")


def item_tower(kind="functional"):
    title = tf.keras.Input((), name="title", dtype=tf.string)
    lookup = tf.keras.layers.StringLookup(vocabulary=ITEMS.ids.tolist())
    if kind == "sequential":
        return tf.keras.Sequential([title, lookup, embedding(N + 1, 2)], name="item_tower")
    return tf.keras.Model({"title": title}, embedding(N + 1, 2)(lookup(title)), name="item_tower")


def make_model(task=None, kind="functional", optimizer=None, **compile_options):
    model = TwoTower(query_tower(kind), item_tower(kind), ITEMS, task)
    model.compile(optimizer or tf.keras.optimizers.Adagrad(0.2), **compile_options)
    return model


def make_eager(*args, **options):
    """The same without tracing, where a few steps are all there is."""
    return make_model(*args, **options, run_eagerly=True)


def mixture(**options):
    return mixed_negative_sampling(ITEMS, num_uniform=7, **options)


def batches(size=8, weights=None):
    columns = {"user_id": LOG_USERS, "title": titles(LOG_ITEMS)}
    if weights is not None:
        columns["sample_weight"] = weights
    return tf.data.Dataset.from_tensor_slices(columns).batch(size)


def state_of(model):
    return [v.numpy() for v in model.task.frequency.variables] + [model.task.step.numpy()]


def vectors(model):
    features = ITEMS.gather(tf.range(N))
    return model.query_vectors({"user_id": np.arange(USERS)}), model.item_vectors(features)


# ------------------------------------------------------------------ fit and evaluate


def test_the_task_of_a_model_without_one_takes_the_mean():
    assert make_model().task.reduction == "mean"


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_epoch_loss_is_the_mean_over_the_epoch(reduction):
    # With a rate of 0 every batch has the loss that can be computed beside it.
    task = Retrieval(reduction=reduction)
    model = make_eager(task, optimizer=tf.keras.optimizers.SGD(0.0))
    logged = model.fit(batches(8), verbose=0).history["loss"][0]
    users = model.query_tower.get_weights()[0]
    items = model.item_tower.get_weights()[-1]
    losses, rows = [], []
    for batch in (slice(0, 8), slice(8, 16), slice(16, 22)):
        pool = reference.batch_columns(
            LOG_ITEMS[batch], items[1 + LOG_ITEMS[batch]], len(LOG_ITEMS[batch])
        )
        queries = users[LOG_USERS[batch]]
        losses.append(reference.retrieval_loss(queries, pool, reduction=reduction))
        rows.append(len(queries))
    weights = rows if reduction == "mean" else [1, 1, 1]
    assert logged == pytest.approx(np.average(losses, weights=weights), rel=1e-5)
    assert logged != pytest.approx(losses[-1], rel=1e-3)


def test_fit_learns_and_its_history_has_the_usual_names():
    model = make_model()
    history = model.fit(batches(), epochs=30, verbose=0).history
    assert history["loss"][-1] < history["loss"][0] - 0.3
    assert set(history) == {"loss", "regularization_loss", "total_loss"}


def test_evaluate_leaves_the_state_alone_and_logs_nothing_it_did_not_compute():
    model = make_eager(mixture(masks=[AccidentalHits()]))
    model.fit(batches(), verbose=0)
    before = state_of(model)
    logs = model.evaluate(batches(), verbose=0, return_dict=True)
    assert set(logs) == {"loss", "regularization_loss", "total_loss"}
    for received, wanted in zip(state_of(model), before, strict=True):
        np.testing.assert_array_equal(received, wanted)
    assert int(model.task.step) == 3
    history = model.fit(batches(), validation_data=batches(), verbose=0).history
    assert "val_loss" in history
    assert "val_masked_share" not in history
    assert history["masked_share"][0] > 0


@pytest.mark.parametrize(
    "task", [None, pytest.param(mixture, marks=pytest.mark.slow)], ids=["default", "mixture"]
)
def test_one_seed_is_one_result(task):
    # A graph counts where there are draws in it.
    def train(seed, eager=task is None):
        tf.keras.utils.set_random_seed(seed)
        model = make_model(task and task(seed=seed), run_eagerly=eager)
        losses = model.fit(batches(), epochs=3, verbose=0).history["loss"]
        return losses, [v.numpy() for v in vectors(model)]

    first, second, other = train(3), train(3), train(4, eager=True)
    assert first[0] == second[0]
    for a, b in zip(first[1], second[1], strict=True):
        np.testing.assert_array_equal(a, b)
    assert (first[0] != other[0]) == (task is not None)


def test_items_without_any_event_learn_from_uniform_draws_only():
    unseen = sorted(set(range(N)) - set(LOG_ITEMS))
    assert unseen
    for task, moves in ((in_batch(ITEMS), False), (mixture(), True)):
        model = make_eager(task)
        before = model.item_tower.get_weights()[-1]
        model.fit(batches(), epochs=2, verbose=0)
        change = np.abs(model.item_tower.get_weights()[-1] - before)[1:][unseen].max(axis=1)
        assert (change > 0).all() == moves
        assert (change > 0).any() == moves


def test_sample_weights_weigh_the_rows():
    weights = RNG.uniform(0, 2, size=8).astype(np.float32)
    data = batches(8, np.resize(weights, 22)).take(1)
    task = Retrieval(temperature=0.5, reduction="mean")
    model = make_eager(task, optimizer=tf.keras.optimizers.SGD(0.0))
    pool = reference.batch_columns(
        LOG_ITEMS[:8], model.item_tower.get_weights()[-1][1 + LOG_ITEMS[:8]], 8
    )
    queries = model.query_tower.get_weights()[0][LOG_USERS[:8]]
    expected = reference.retrieval_loss(queries, pool, temperature=0.5, weights=weights)
    assert model.evaluate(data, verbose=0, return_dict=True)["loss"] == pytest.approx(expected)


def test_regularisation_is_added_and_logged():
    model = make_eager()
    model.query_tower.add_loss(lambda: tf.constant(2.5))
    logs = model.evaluate(batches(), verbose=0, return_dict=True)
    assert logs["regularization_loss"] == pytest.approx(2.5)
    assert logs["total_loss"] == pytest.approx(logs["loss"] + 2.5)


def test_index_stream_feeds_fit():
    source = IndexStream(ITEMS, 5)
    task = Retrieval(
        negatives=[InBatch(), source], frequency=StreamingFrequency(64), masks=[AccidentalHits()]
    )
    model = make_eager(task)
    model.fit(source.attach(batches()), verbose=0)
    assert "6 queries, 11 candidates (in_batch 6, index_stream 5)" in describe_last_step(model.task)


# ------------------------------------------------------------------ the first line


def reports(caplog):
    return [r.getMessage() for r in caplog.records if r.name == "tfrs_negatives"]


@pytest.mark.parametrize("steps_per_execution", [1, 3])
def test_the_first_step_is_reported_once(caplog, steps_per_execution):
    caplog.set_level(logging.INFO, "tfrs_negatives")
    model = make_model(mixture(correct="negatives"), steps_per_execution=steps_per_execution)
    model.fit(batches(), epochs=2, verbose=0)
    model.fit(batches(), verbose=0)
    (line,) = reports(caplog)
    rows = 8 if steps_per_execution == 1 else 6
    sources = f"{rows} queries, {rows + 7} candidates (in_batch {rows}, uniform 7)"
    assert sources in line
    assert "correction negatives x 1, cosine / 0.1" in line
    share = float(line.split("masked ")[1].split("%")[0])
    assert 0 < share < 100
    assert "replicas 1" in line


def test_the_report_is_there_for_a_callback_list_too(caplog):
    caplog.set_level(logging.INFO, "tfrs_negatives")
    model = make_eager()
    callbacks = tf.keras.callbacks.CallbackList(model=model)
    model.fit(batches(), callbacks=callbacks, verbose=0)
    assert len(reports(caplog)) == 1


def test_the_report_of_probabilities_from_the_caller_says_corrected(caplog):
    caplog.set_level(logging.INFO, "tfrs_negatives")
    task = Retrieval()
    probability = np.full(3, 0.2, np.float32)
    task(np.eye(3), np.eye(3), candidate_sampling_probability=probability, training=True)
    assert "correction both x 1" in describe_last_step(task)
    task(np.eye(3), np.eye(3), training=True)
    assert "correction none" in describe_last_step(task)


# ------------------------------------------------------------------ errors


def test_an_item_outside_the_catalogue_is_an_error_that_names_the_column():
    batch = {"user_id": np.array([0, 1]), "title": np.array(["item 1", "another"])}
    with pytest.raises((InputError, tf.errors.InvalidArgumentError), match="`title`"):
        make_eager().fit(tf.data.Dataset.from_tensors(batch), verbose=0)


@pytest.mark.parametrize("column", ["user_id", "title"])
def test_a_missing_column_is_named(column):
    data = batches().map(lambda batch: {n: x for n, x in batch.items() if n != column})
    with pytest.raises(Exception, match=column) as error:
        make_model().fit(data, verbose=0)
    assert "expected" in str(error.value)


def test_a_tower_without_named_inputs_has_no_signature():
    subclassed = type("Tower", (tf.keras.Model,), {"call": lambda self, x: x["user_id"]})()
    model = TwoTower(subclassed, item_tower(), ITEMS)
    with pytest.raises(InputError, match="query_tower"):
        _ = model.query_signature


# ------------------------------------------------------------------ towers of the user


@pytest.mark.parametrize("kind", ["sequential", "functional"])
def test_towers_of_the_user(kind):
    model = make_model(mixture(), kind, run_eagerly=kind == "functional")
    model.fit(batches(), verbose=0)
    assert list(model.query_signature) == ["user_id"]
    assert model.query_signature["user_id"].dtype == tf.int64
    queries, items = vectors(model)
    assert queries.shape == (USERS, D)
    assert items.shape == (N, D)
    np.testing.assert_allclose(np.linalg.norm(items, axis=1), 1, rtol=1e-5)


def test_retrieval_vectors_rank_as_the_score_does():
    bias = ItemBias(ITEMS.ids, np.arange(N) ** 2)
    task = in_batch(ITEMS, item_bias=bias, temperature=0.3)
    model = make_model(task)
    queries, items = (v.numpy() for v in vectors(model))
    raw_queries = model.query_tower.get_weights()[0]
    raw_items = model.item_tower.get_weights()[-1][1:]
    logs = np.log(np.maximum(np.arange(N) ** 2, 0.5) / (np.arange(N) ** 2).sum())
    for user in range(USERS):
        for item in range(N):
            score = reference.score(
                raw_queries[user],
                raw_items[item],
                similarity="cosine",
                temperature=0.3,
                bias=logs[item],
            )
            assert queries[user] @ items[item] == pytest.approx(0.3 * score, abs=1e-5)


# ------------------------------------------------------------------ save and resume


def optimizers():
    return [tf.keras.optimizers.Adagrad(0.1), SparseAdam(0.01)]


@pytest.mark.parametrize("optimizer", optimizers(), ids=lambda o: type(o).__name__)
def test_a_saved_model_answers_and_goes_on_as_before(tmp_path, optimizer):
    task = mixture(item_bias=ItemBias(ITEMS.ids, np.arange(N)), learn_temperature=True)
    eager = not isinstance(optimizer, SparseAdam)
    model = make_model(task, optimizer=optimizer, run_eagerly=eager)
    model.fit(batches(), verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    loaded.compile(loaded.optimizer, run_eagerly=eager)
    for received, wanted in zip(vectors(loaded), vectors(model), strict=True):
        np.testing.assert_array_equal(received, wanted)
    for received, wanted in zip(state_of(loaded), state_of(model), strict=True):
        np.testing.assert_array_equal(received, wanted)
    losses = [m.fit(batches(), epochs=2, verbose=0).history["loss"] for m in (loaded, model)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("name", ["weights.h5", "weights.weights.h5", "checkpoint"])
def test_weights_restore_state_and_vectors(tmp_path, name):
    model, again = make_eager(mixture()), make_eager(mixture())
    model.fit(batches(), epochs=2, verbose=0)
    again.fit(batches(), verbose=0)
    model.save_weights(tmp_path / name)
    again.load_weights(tmp_path / name)
    for received, wanted in zip(vectors(again), vectors(model), strict=True):
        np.testing.assert_array_equal(received, wanted)
    for received, wanted in zip(state_of(again), state_of(model), strict=True):
        np.testing.assert_array_equal(received, wanted)


def test_the_report_is_a_callback_for_models_of_the_user():
    assert issubclass(FirstStepReport, tf.keras.callbacks.Callback)


def test_uniform_and_in_batch_are_what_the_recipes_say():
    kinds = [[type(s) for s in task.negatives] for task in (in_batch(ITEMS), mixture())]
    assert kinds == [[InBatch], [InBatch, Uniform]]


def test_the_end_of_data_of_unknown_length_counts_no_step():
    def batches():
        for _ in range(2):
            yield {"user_id": LOG_USERS[:6], "title": titles(LOG_ITEMS[:6])}

    spec = {"user_id": tf.TensorSpec([6], tf.int64), "title": tf.TensorSpec([6], tf.string)}
    data = tf.data.Dataset.from_generator(batches, output_signature=spec)
    task = Retrieval(negatives=[InBatch(), CrossBatch(12)], frequency=StreamingFrequency(64, 2))
    model = make_model(task)
    model.fit(data, epochs=3, verbose=0)
    steps = [model.steps_done, task.frequency.step, task.negatives[1].bank.step]
    assert [int(step) for step in steps] == [6, 6, 6]
