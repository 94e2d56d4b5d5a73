"""Half precision, compiled steps and chunks of rows: the same training by other means."""

from __future__ import annotations

import contextlib
import functools

import numpy as np
import pytest
import tensorflow as tf

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.data import Interactions
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.model.optimizers import SparseAdam
from tfrs_negatives.model.recipes import frequency_table
from tfrs_negatives.model.two_tower import TwoTower
from tfrs_negatives.step.masks.known_positives import KnownPositives
from tfrs_negatives.step.samplers import CrossBatch, Explicit, InBatch, Uniform
from tfrs_negatives.step.score import ItemBias
from tfrs_negatives.step.task import Retrieval
from tfrs_negatives.towers.build import build_tower
from tfrs_negatives.towers.features import FeatureSpec

N, USERS, B, STEPS = 30, 20, 16, 6
ITEMS = ItemCatalogue(np.arange(N))
RNG = np.random.default_rng(0)
# Users like the items of their own parity, so that there is something to learn.
LOG_USERS = RNG.integers(0, USERS, B * STEPS)
LOG_ITEMS = RNG.integers(0, N // 2, B * STEPS) * 2 + LOG_USERS % 2
HISTORY = Interactions({"user_id": LOG_USERS}, LOG_ITEMS, query_key="user_id")
BATCHES = tf.data.Dataset.from_tensor_slices(
    {
        "user_id": LOG_USERS,
        "item_id": LOG_ITEMS,
        "rejected": RNG.integers(0, N, (B * STEPS, 2)),
    }
).batch(B, drop_remainder=True)


@contextlib.contextmanager
def policy(name):
    tf.keras.mixed_precision.set_global_policy(name)
    try:
        yield
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")


def everything(**options):
    return Retrieval(
        negatives=[
            InBatch(),
            Uniform(ITEMS, 12),
            Explicit("rejected", ITEMS),
            CrossBatch(40, probes=ITEMS),
        ],
        frequency=frequency_table(ITEMS),
        masks=[KnownPositives(HISTORY, ITEMS, static_shapes=True)],
        correct="negatives",
        similarity="cosine",
        temperature=0.2,
        item_bias=ItemBias(ITEMS.ids, np.ones(N)),
        reduction="mean",
        **options,
    )


def make_model(optimizer=None, *, hidden=(8,), task=None, jit_compile=None, **options):
    tf.keras.utils.set_random_seed(3)
    sizes = {"embedding_dim": 8, "hidden": hidden, "output_dim": 8}
    users = FeatureSpec("user_id", "categorical", "int64", None, tuple(range(USERS)))
    items = FeatureSpec("item_id", "categorical", "int64", None, tuple(range(N)))
    query_tower = build_tower([users], name="query_tower", **sizes)
    item_tower = build_tower([items], name="item_tower", **sizes)
    model = TwoTower(query_tower, item_tower, ITEMS, task or everything(), **options)
    model.compile(optimizer or SparseAdam(0.05), jit_compile=jit_compile)
    return model


def losses(model, epochs=3):
    return model.fit(BATCHES, epochs=epochs, verbose=0).history["loss"]


@functools.cache
def plain():
    """The loss of each epoch and all weights after it, in float32, at once and not compiled."""
    model, weights = make_model(), []
    keep = tf.keras.callbacks.LambdaCallback(
        on_epoch_end=lambda *_: weights.append([v.numpy() for v in model.variables])
    )
    history = model.fit(BATCHES, epochs=4, verbose=0, callbacks=[keep]).history
    return history["loss"], weights


def assert_trains_as_plain(model, epochs, *, loss_rtol, rtol, atol):
    expected, weights = plain()
    assert losses(model, epochs) == pytest.approx(expected[:epochs], rel=loss_rtol)
    for received, wanted in zip(model.variables, weights[epochs - 1], strict=True):
        np.testing.assert_allclose(received, wanted, rtol=rtol, atol=atol)


# ------------------------------------------------------------------ half precision


# The test after it trains in half precision too.
@pytest.mark.slow
@pytest.mark.parametrize("name", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_trains_as_single(name):
    expected, _ = plain()
    scaled = tf.keras.mixed_precision.LossScaleOptimizer
    with policy(name):
        # A fixed scale: the dynamic one skips steps until it has found its height.
        optimizer = scaled(SparseAdam(0.05), dynamic=False, initial_scale=128.0)
        model = make_model(optimizer if name == "mixed_float16" else None)
        assert isinstance(make_model().optimizer, scaled) == (name == "mixed_float16")
    received = losses(model, epochs=4)
    assert expected[-1] < expected[0] - 0.1
    assert received == pytest.approx(expected, abs=0.05)
    assert model.query_tower(next(iter(BATCHES))).dtype.name == name.removeprefix("mixed_")
    # Tables, bank and scores stay in float32 whatever the towers answer in.
    assert {v.dtype.name for v in model.task.variables} <= {"float32", "int64", "int32", "bool"}


@pytest.mark.slow
def test_an_overflow_is_skipped_and_leaves_no_trace():
    with policy("mixed_float16"):
        model = make_model(tf.keras.optimizers.SGD(0.1))
    losses(model, epochs=1)
    kernel = model.item_tower.trainable_variables[-2]
    good, kernel_before = [w.numpy() for w in model.trainable_variables], kernel.numpy()
    kernel.assign(kernel * 1e8)  # above what float16 holds: the embeddings are infinite
    scale = float(model.optimizer.loss_scale)
    one_batch = BATCHES.take(1)
    model.fit(one_batch, verbose=0)
    assert float(model.optimizer.loss_scale) == scale / 2
    kernel.assign(kernel_before)
    for before, weight in zip(good, model.trainable_variables, strict=True):
        np.testing.assert_array_equal(weight, before)  # the step was skipped
    bank = model.task.negatives[-1].bank
    assert np.isfinite(bank.vectors.numpy()).all()
    assert (bank.steps.numpy() == -1).sum() == B  # the batch left its slots empty
    assert int(model.steps_done) == STEPS + 1
    assert np.isfinite(losses(model, epochs=1)).all()


# ------------------------------------------------------------------ compiled


@pytest.mark.slow
@pytest.mark.parametrize("in_parts", [False, True], ids=["at once", "in blocks and chunks"])
def test_the_whole_step_compiled_by_xla_trains_the_same(in_parts):
    if in_parts:
        task = everything(logits_budget=4 * B * 9)
        compiled = make_model(task=task, jit_compile=True, encode_chunk=5)
    else:
        compiled = make_model(jit_compile=True)
    assert_trains_as_plain(compiled, 2, loss_rtol=1e-4, rtol=1e-3, atol=1e-3)


# ------------------------------------------------------------------ chunks of rows


@pytest.mark.parametrize("chunk", [5, 100])
@pytest.mark.slow
def test_chunks_of_rows_train_the_same(chunk):
    model = make_model(encode_chunk=chunk)
    assert_trains_as_plain(model, 1, loss_rtol=1e-5, rtol=1e-4, atol=2e-5)


def test_the_chunk_is_saved_and_checked(tmp_path):
    model = make_model(task=Retrieval(), encode_chunk=5)
    losses(model, 1)
    model.save(tmp_path / "model.keras")
    assert tf.keras.models.load_model(tmp_path / "model.keras").encode_chunk == 5
    with pytest.raises(InputError, match="encode_chunk"):
        make_model(encode_chunk=0)
    noisy = tf.keras.Sequential([tf.keras.Input([2]), tf.keras.layers.Dropout(0.5, name="drop")])
    with pytest.raises(InputError, match="drop"):
        TwoTower(noisy, noisy, ITEMS, encode_chunk=4)


def test_a_budget_below_one_column_is_an_error():
    with pytest.raises(InputError, match="logits_budget"):
        Retrieval(logits_budget=3)
    task = Retrieval(logits_budget=4 * B - 1)
    with pytest.raises(InputError, match=f"at least {4 * B} bytes, one candidate"):
        task(tf.ones([B, 3]), tf.ones([B, 3]), training=True)
