"""Training that is killed and goes on: equal to the last bit, whatever carries the state."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import killable
import numpy as np
import pytest
import tensorflow as tf

from tfrs_negatives.callbacks import Checkpoints, restore_newest
from tfrs_negatives.types import InputError

SEED, OTHER_SEED = 5, 6
KILLED_AFTER, OURS_AT, KERAS_AT = 14, 13, 10  # epochs of 8 steps: all in the middle of the second


def assert_equal_states(model, wanted):
    received = killable.state_of(model)
    assert [name for name, _ in received] == [name for name, _ in wanted]
    for (name, values), (_, others) in zip(received, wanted, strict=True):
        np.testing.assert_array_equal(values, others, err_msg=name)


@pytest.fixture(scope="module")
def uninterrupted():
    """Per optimizer the state after all epochs, and their losses."""
    results = {}
    for optimizer in killable.OPTIMIZERS.values():
        model = killable.make_model(optimizer, seed=SEED)
        losses = killable.train(model)
        results[optimizer] = (killable.state_of(model), losses)
    return results


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Per callback the folder that a training left which was killed with SIGKILL."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in killable.CALLBACKS}
    program = [sys.executable, str(Path(__file__).with_name("killable.py"))]
    running = {
        kind: subprocess.Popen(
            [*program, str(folder), kind, str(KILLED_AFTER)], stderr=subprocess.PIPE, text=True
        )
        for kind, folder in folders.items()
    }
    for process in running.values():
        _, errors = process.communicate(timeout=120)
        assert process.returncode == -signal.SIGKILL, errors
    return folders


@pytest.fixture
def left_behind(killed, tmp_path):
    """A copy of what our callback left, to be damaged."""
    return Path(shutil.copytree(killed["ours"], tmp_path / "checkpoints"))


def resume(folder, kind="ours"):
    # Another random start, so that whatever is not restored shows.
    model = killable.make_model(killable.OPTIMIZERS[kind], seed=OTHER_SEED)
    return model, killable.train(model, killable.CALLBACKS[kind](folder))


def test_the_state_has_all_that_must_be_restored(uninterrupted):
    state, _ = uninterrupted["sparse_adam"]
    names = [name.split(":")[0] for name, _ in state]
    assert {"calls", "task_step", "table", "bias", "log_temperature", "iteration"} <= set(names)
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


def newest_of(folder):
    model = killable.make_model(seed=OTHER_SEED)
    model.optimizer.build(model.trainable_variables)
    checkpoint = tf.train.Checkpoint(model=model)
    return model, restore_newest(tf.train.CheckpointManager(checkpoint, folder, 2))


@pytest.mark.parametrize("case", DAMAGES)
def test_where_the_newest_is_damaged_the_one_before_is_used(left_behind, caplog, case):
    suffix, damage = DAMAGES[case]
    (path,) = left_behind.glob(f"ckpt-{OURS_AT}.{suffix}")
    damage(path)
    model, found = newest_of(left_behind)
    assert found == str(left_behind / "ckpt-8")
    assert f"ckpt-{OURS_AT} is damaged" in caplog.text
    assert int(model.optimizer.iterations) == int(model.task.step) == 8
    # What was read before the damage was met does not stay.
    wanted = killable.make_model(seed=OTHER_SEED)
    wanted.optimizer.build(wanted.trainable_variables)
    tf.train.Checkpoint(model=wanted).read(found).assert_existing_objects_matched()
    assert_equal_states(model, killable.state_of(wanted))


def test_training_goes_on_from_the_one_before(left_behind, uninterrupted):
    cut(left_behind / f"ckpt-{OURS_AT}.data-00000-of-00001", 0.9)
    model, losses = resume(left_behind)
    state, wanted = uninterrupted["sparse_adam"]
    assert_equal_states(model, state)
    assert losses == wanted[1:]


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
    model = killable.make_model("adagrad")
    with pytest.raises(InputError, match="`checkpoints`: expected those of this model"):
        killable.train(model, Checkpoints(left_behind))


def test_the_number_of_steps_must_be_known(left_behind):
    model = killable.make_model()
    data = killable.make_data().train.dataset(8, item_key="item").filter(lambda batch: True)
    with pytest.raises(InputError, match="`steps_per_epoch`"):
        model.fit(data, callbacks=[Checkpoints(left_behind)], verbose=0)


def test_a_model_that_was_trained_before_counts_its_epochs_anew(tmp_path, uninterrupted):
    model = killable.make_model(seed=SEED)
    assert len(killable.train(model, epochs=1)) == 1
    assert len(killable.train(model, Checkpoints(tmp_path), epochs=1)) == 1
    again = killable.make_model(seed=OTHER_SEED)
    assert len(killable.train(again, Checkpoints(tmp_path), epochs=2)) == 1
    assert_equal_states(again, uninterrupted["sparse_adam"][0])


def test_every_steps_is_at_least_one():
    with pytest.raises(InputError, match="`every_steps`"):
        Checkpoints("unused", every_steps=0)


# ------------------------------------------------------------------ other carriers


def load_weights(path):
    model = killable.make_model(seed=OTHER_SEED)
    # Slots have to exist before they can be read.
    model.optimizer.build(model.trainable_variables)
    model.load_weights(path)
    return model


def read_checkpoint(path):
    model = killable.make_model(seed=OTHER_SEED)
    model.optimizer.build(model.trainable_variables)
    tf.train.Checkpoint(model=model).read(str(path)).assert_existing_objects_matched()
    return model


CARRIERS = {
    "model.keras": tf.keras.models.load_model,
    "weights": load_weights,
    "all.weights.h5": load_weights,
    "checkpoint": read_checkpoint,
}


def test_other_carriers_of_the_state(tmp_path):
    keep = tf.keras.callbacks.ModelCheckpoint
    model = killable.make_model()
    killable.train(
        model,
        keep(str(tmp_path / "model.keras")),
        keep(str(tmp_path / "weights"), save_weights_only=True),
        keep(str(tmp_path / "all.weights.h5"), save_weights_only=True),
        epochs=1,
    )
    tf.train.Checkpoint(model=model).write(str(tmp_path / "checkpoint"))
    for name, load in CARRIERS.items():
        assert_equal_states(load(tmp_path / name), killable.state_of(model))
