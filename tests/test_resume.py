"""Training that is killed and goes on: equal to the last bit, whatever carries the state."""

from __future__ import annotations

import functools
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import killable
import numpy as np
import pytest
import tensorflow as tf

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.runs.checkpoints import Checkpoints, restore_newest

SEED, OTHER_SEED = 5, 6
KILLED_AFTER, OURS_AT = 14, 13  # in the middle of the second epoch of 8 steps


def assert_equal_states(model, wanted):
    received = killable.state_of(model)
    assert [name for name, _ in received] == [name for name, _ in wanted]
    for (name, values), (_, others) in zip(received, wanted, strict=True):
        np.testing.assert_array_equal(values, others, err_msg=name)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """What a training with each callback has written by the step at which it will be killed."""
    folder = tmp_path_factory.mktemp("killed")
    return {kind: folder / kind for kind in killable.TRAIN}


@pytest.fixture(scope="module")
def trained(killed, tmp_path_factory):
    """Per optimizer a model after all epochs without interruption, and their losses.

    On the way a copy is made of what a kill would leave.
    """
    models = {}
    for kind, optimizer in killable.OPTIMIZERS.items():
        folder = tmp_path_factory.mktemp("trained") / kind
        copy = functools.partial(shutil.copytree, folder, killed[kind])
        model = killable.make_model(optimizer, seed=SEED)
        losses = killable.TRAIN[kind](model, folder, killable.After(KILLED_AFTER, copy))
        models[optimizer] = model, losses
    return models


@pytest.fixture(scope="module")
def uninterrupted(trained):
    """Per optimizer the state after all epochs, and their losses."""
    return {o: (killable.state_of(model), losses) for o, (model, losses) in trained.items()}


@pytest.fixture
def left_behind(trained, killed, tmp_path):
    """A copy of what our callback left, to be damaged."""
    return Path(shutil.copytree(killed["ours"], tmp_path / "checkpoints"))


def resume(folder, kind="ours"):
    # Another random start, so that whatever is not restored shows.
    model = killable.make_model(killable.OPTIMIZERS[kind], seed=OTHER_SEED)
    return model, killable.TRAIN[kind](model, folder)


def test_the_state_has_all_that_must_be_restored(uninterrupted):
    state, _ = uninterrupted["sparse_adam"]
    names = [name.split(":")[0] for name, _ in state]
    assert {"calls", "task_step", "table", "bias", "log_temperature", "iteration"} <= set(names)
    (thresholds,) = [x for name, x in state if name.split(":")[0] == "thresholds"]
    assert (thresholds != 0).any()
    numbers = [int(x) for name, x in state if name.split(":")[0] in ("calls", "task_step")]
    # The item tower runs twice in a step: on the batch and on the uniform draws.
    assert sorted(numbers) == [24, 24, 48]


def test_a_killed_training_goes_on_bit_for_bit(killed, uninterrupted, tmp_path, caplog):
    caplog.set_level("INFO", "tfrs_negatives")
    folder = shutil.copytree(killed["ours"], tmp_path / "checkpoints")
    model, losses = resume(folder)
    state, wanted = uninterrupted["sparse_adam"]
    assert_equal_states(model, state)
    # The epoch that was interrupted has the loss of all its steps.
    assert losses == wanted[1:]
    assert f"goes on after step {OURS_AT}" in caplog.text
    assert "first step" not in caplog.text
    # Nothing is left to do for another call, and nothing is lost by it.
    again, losses = resume(folder)
    assert_equal_states(again, state)
    assert losses == []


def test_the_callback_of_keras_restores_the_state_but_not_the_loss(killed, uninterrupted):
    model, losses = resume(killed["keras"], "keras")
    state, wanted = uninterrupted["adagrad"]
    assert_equal_states(model, state)
    assert losses[1:] == wanted[2:]
    assert losses[0] != wanted[1]


@pytest.mark.slow
def test_what_sigkill_leaves_goes_on_as_what_was_copied(tmp_path):
    """Two trainings, one with each callback, beside two that have no callback at all."""
    program = Path(__file__).with_name("killable.py")
    process = subprocess.run(
        [sys.executable, str(program), str(tmp_path), str(KILLED_AFTER)],
        capture_output=True,
        text=True,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    for kind, optimizer in killable.OPTIMIZERS.items():
        plain = killable.make_model(optimizer, seed=SEED)
        wanted = killable.fit(plain, 0)
        model, losses = resume(tmp_path / kind, kind)
        assert_equal_states(model, killable.state_of(plain))
        # That of Keras has lost the first part of the epoch that was interrupted.
        whole = 1 if kind == "ours" else 2
        assert losses[whole - 1 :] == wanted[whole:]


KNOWING_QUERIES = (
    "task.recipe=null",
    "task.negatives=[in_batch, {balanced: {sampler: {uniform: {num_negatives: 5}}}}, "
    "{adaptive_pool: {proposals: {uniform: {num_negatives: 9}}, masks: [known_positives]}}, "
    "{robust_memory: {proposals: {uniform: {num_negatives: 9}}, pool_size: 3, warmup_epochs: 1}}, "
    "{reinforced: {num_candidates: 4, width: 3, learning_rate: 0.5}}]",
)


@pytest.mark.slow
def test_what_samplers_know_of_queries_goes_on_bit_for_bit(tmp_path):
    folder, left = tmp_path / "trained", tmp_path / "left"
    model = killable.make_model("sparse_adam", SEED, *KNOWING_QUERIES)
    copy = killable.After(KILLED_AFTER, functools.partial(shutil.copytree, folder, left))
    losses = killable.train_with_ours(model, folder, copy)
    names = {name.split(":")[0] for name, _ in killable.state_of(model)}
    assert {"pool", "scores", "recorded", "means", "query_vectors", "log_weight"} <= names
    again = killable.make_model("sparse_adam", OTHER_SEED, *KNOWING_QUERIES)
    assert killable.train_with_ours(again, left) == losses[1:]
    assert_equal_states(again, killable.state_of(model))


# ------------------------------------------------------------------ damaged checkpoints


def cut(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 255
    path.write_bytes(data)


DAMAGES = {
    "index cut": ("index", lambda path: cut(path, 0.5)),
    "data cut": ("data*", lambda path: cut(path, 0.9)),
    "data flipped": ("data*", flip),
    "data gone": ("data*", Path.unlink),
}


def built_model():
    model = killable.make_model(seed=OTHER_SEED)
    # Slots have to exist before they can be read.
    model.optimizer.build(model.trainable_variables)
    return model


def read_checkpoint(path):
    model = built_model()
    status = tf.train.Checkpoint(model=model).read(str(path)).assert_existing_objects_matched()
    status.expect_partial()  # `read` leaves the number of the checkpoint aside
    return model


@pytest.fixture(scope="module")
def one_before(trained, killed):
    return killable.state_of(read_checkpoint(killed["ours"] / "ckpt-8"))


@pytest.mark.parametrize("case", DAMAGES)
def test_where_the_newest_is_damaged_the_one_before_is_used(left_behind, one_before, caplog, case):
    suffix, damage = DAMAGES[case]
    (path,) = left_behind.glob(f"ckpt-{OURS_AT}.{suffix}")
    damage(path)
    model = built_model()
    manager = tf.train.CheckpointManager(tf.train.Checkpoint(model=model), left_behind, 2)
    assert restore_newest(manager) == str(left_behind / "ckpt-8")
    assert f"ckpt-{OURS_AT} is damaged" in caplog.text
    assert int(model.optimizer.iterations) == int(model.task.step) == 8
    # What was read before the damage was met does not stay.
    assert_equal_states(model, one_before)


@pytest.mark.parametrize(
    ("names", "damage"),
    [
        ("*.index", lambda path: cut(path, 0.5)),
        ("checkpoint", lambda path: cut(path, 0.5)),
        ("checkpoint", lambda path: cut(path, 0)),
    ],
)
def test_where_none_can_be_read_training_does_not_begin_anew(left_behind, names, damage):
    for path in left_behind.glob(names):
        damage(path)
    with pytest.raises(InputError, match=r"`checkpoints`: .*read"):
        resume(left_behind)


def test_checkpoints_of_another_model_are_an_error(left_behind):
    with pytest.raises(InputError, match="`checkpoints`: expected those of this model"):
        Checkpoints(left_behind).restore(killable.make_model("adagrad"))


def test_the_number_of_steps_must_be_known(left_behind):
    model, checkpoints = killable.make_model(), Checkpoints(left_behind)
    checkpoints.restore(model)
    data = killable.make_data().train.dataset(8, item_key="item").filter(lambda batch: True)
    with pytest.raises(InputError, match="`steps_per_epoch`"):
        model.fit(data, callbacks=[checkpoints], verbose=0)


def test_each_fit_needs_a_restore(left_behind):
    model, checkpoints = killable.make_model(), Checkpoints(left_behind)
    with pytest.raises(InputError, match="restore"):
        killable.fit(model, 0, checkpoints)
    start = checkpoints.restore(model)
    killable.fit(model, start, checkpoints, epochs=1)
    with pytest.raises(InputError, match="restore"):
        killable.fit(model, start, checkpoints)


def small_model(start):
    layer = tf.keras.layers.Dense(1, kernel_initializer=tf.keras.initializers.Constant(start))
    model = tf.keras.Sequential([tf.keras.Input((1,)), layer])
    model.compile(tf.keras.optimizers.SGD(0.01, momentum=0.9), "mse")
    return model


def fit_small(model, *callbacks, epochs):
    """Trains with epochs of 4 equal steps; returns the number of epochs."""
    rows = tf.data.Dataset.from_tensors(tf.ones([1, 1])).repeat(4)
    data = tf.data.Dataset.zip((rows, rows))
    history = model.fit(data, epochs=epochs, callbacks=list(callbacks), verbose=0)
    return len(history.history.get("loss", []))


def test_a_model_that_was_trained_before_counts_its_epochs_anew(tmp_path):
    model, again = small_model(0.5), small_model(7.0)
    fit_small(model, epochs=1)
    first, second = Checkpoints(tmp_path), Checkpoints(tmp_path)
    assert first.restore(model) == 0
    assert fit_small(model, first, epochs=1) == 1
    assert second.restore(again) == 4
    assert fit_small(again, second, epochs=3) == 2
    fit_small(model, epochs=2)
    assert_equal_states(again, killable.state_of(model))


def test_the_end_of_an_epoch_is_not_saved_before_the_other_callbacks_are_done(tmp_path):
    class Evaluation(tf.keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            raise RuntimeError("killed while it evaluates")

    model, checkpoints = small_model(0.5), Checkpoints(tmp_path, every_steps=2)
    checkpoints.restore(model)
    with pytest.raises(RuntimeError, match="evaluates"):
        fit_small(model, Evaluation(), checkpoints, epochs=2)
    # Step 4 is done once more, so that the end of the epoch comes once more.
    assert Checkpoints(tmp_path).restore(small_model(7.0)) == 2


def test_every_steps_is_at_least_one():
    with pytest.raises(InputError, match="`every_steps`"):
        Checkpoints("unused", every_steps=0)


def test_tracked_parts_have_names_of_their_own():
    with pytest.raises(InputError, match=r"`track`: .* Received: \['model'\]"):
        Checkpoints("unused", track={"model": tf.Module(), "clusters": tf.Module()})


# ------------------------------------------------------------------ other carriers


def load_weights(path):
    model = built_model()
    model.load_weights(path)
    return model


CARRIERS = {
    "model.keras": tf.keras.models.load_model,
    "weights": load_weights,
    "all.weights.h5": load_weights,
    "checkpoint": read_checkpoint,
}


def test_other_carriers_of_the_state(tmp_path, trained, uninterrupted):
    model, _ = trained["sparse_adam"]
    for name, only_weights in {
        "model.keras": False,
        "weights": True,
        "all.weights.h5": True,
    }.items():
        keep = tf.keras.callbacks.ModelCheckpoint(
            str(tmp_path / name), save_weights_only=only_weights
        )
        keep.set_model(model)
        keep.on_epoch_end(0, {})
    tf.train.Checkpoint(model=model).write(str(tmp_path / "checkpoint"))
    for name, load in CARRIERS.items():
        assert_equal_states(load(tmp_path / name), uninterrupted["sparse_adam"][0])
