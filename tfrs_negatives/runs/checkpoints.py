"""Keras callbacks of a training run: what survives a kill, and what is recorded."""

from __future__ import annotations

import csv
import logging
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.files import to_csv, write_text

logger = logging.getLogger("tfrs_negatives")


class Checkpoints(tf.keras.callbacks.Callback):
    """Saves during `fit` all that training needs, and lets a later `fit` go on from there.

    Call `restore` before `fit`, and give `fit` an `Interactions.stream` that starts at the step it
    returns, `steps_per_epoch`, and the same `epochs` again: weights, optimizer slots, the state of
    the task and the loss of the epoch become what they would have been without the interruption,
    bit for bit. The end of an epoch is always saved. The two newest checkpoints are kept, also
    after the end; where the newest is damaged, the one before is used and a warning says so.

    `tf.keras.callbacks.BackupAndRestore` restores inside of `fit`, too late for the data to start
    at the right batch; the loss of an epoch that was interrupted is then that of its last part, and
    there is no older checkpoint.

    Put it after the callbacks whose work at the end of an epoch must be done before that is saved.

    Args:
        folder: where the checkpoints go; made where it is absent. One folder belongs to one run.
        every_steps: how many steps of an epoch may be lost; None saves at the end of epochs only. A
            checkpoint is as large as the weights and the optimizer slots together, for Adam three
            times the weights, and training waits while it is written.
        track: what else is saved and restored, name -> a `tf.Module` or another trackable, such as
            the `state` of `ClusteredBatches`.

    Raises:
        InputError: if `every_steps` is below 1, a name of `track` is taken, or `fit` begins without
            `restore` or `steps_per_epoch`.

    Example:
        >>> import tempfile
        >>> model = tf.keras.Sequential([tf.keras.Input((1,)), tf.keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> checkpoints = Checkpoints(tempfile.mkdtemp())
        >>> checkpoints.restore(model)
        0
        >>> _ = model.fit(tf.ones([6, 1]), tf.ones([6]), 2, callbacks=[checkpoints], verbose=0)
        >>> checkpoints.restore(model)
        3
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        every_steps: int | None = None,
        track: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if every_steps is not None and every_steps < 1:
            raise bad_input("every_steps", "at least 1, or None", every_steps)
        self.folder, self.every_steps = Path(folder), every_steps
        self._supports_tf_logs = True
        self._track = dict(track or {})
        taken = sorted(self._track.keys() & {"model", "first_step"})
        if taken:
            raise bad_input("track", "other names than model and first_step", taken)
        self._restored: Any = None

    def restore(self, model: tf.keras.Model) -> int:
        """Restores the newest checkpoint that can be read, if there is one.

        Not inside of `fit`: its data would have to ask for the step while the first one runs, and
        TensorFlow counts a step before its batch is there.

        Args:
            model: built and compiled, as the one that was saved.

        Returns:
            How many steps of this run are done; 0 where there is no checkpoint.

        Raises:
            InputError: if the checkpoints are those of another model, or none can be read.
        """
        optimizer = model.optimizer
        # Slots that do not exist yet would be restored at the first step only. Outside the scope
        # all replicas would share one copy, and each move it.
        with model.distribute_strategy.scope():
            optimizer.build(model.trainable_variables)
        # A model that was trained before may begin with a step that is not 0.
        self._first_step = tf.Variable(steps_done(model), trainable=False, dtype=tf.int64)
        checkpoint = tf.train.Checkpoint(model=model, first_step=self._first_step, **self._track)
        self._manager = _manage(checkpoint, self.folder)
        path = restore_newest(self._manager)
        self._sums = [(v, v.numpy()) for metric in model.metrics for v in metric.variables]
        self._restored = model
        done = steps_done(model) - int(self._first_step)
        if path is not None:
            logger.info("goes on after step %d, from %s", done, path)
        return done

    def on_train_begin(self, logs: Any = None) -> None:
        """Takes the place of what `fit` asks for the epoch and the step to begin with."""
        if self._restored is not self.model:
            raise bad_input("checkpoints", "a call of `restore(model)` before `fit`", self.folder)
        # Once per `fit`: another one would begin where the first one ended, as if it had not been.
        self._restored = None
        self.model._training_state = self

    def maybe_load_initial_counters_from_ckpt(
        self, steps_per_epoch: int | None, initial_epoch: int, mode: Any = None
    ) -> tuple[int, int]:
        """Answers `fit`, which asks for the (epoch, step) to begin with."""
        self.model._training_state = None
        if steps_per_epoch is None:
            raise bad_input("steps_per_epoch", "a number, to find the place in an epoch", None)
        done = steps_done(self.model) - int(self._first_step.numpy())
        epoch, self._saved = divmod(done, steps_per_epoch)
        return initial_epoch + epoch, self._saved

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Puts the sums of a half-done epoch back, which `fit` has just set to zero."""
        if self._saved:
            for variable, value in self._sums:
                variable.assign(value)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Saves where enough steps are done; the end of an epoch has a method of its own."""
        done = batch + 1
        if self.every_steps is None or done == self.params["steps"]:
            return
        if done - self._saved >= self.every_steps:
            self._save()
            self._saved = done

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Saves."""
        self._save()
        self._saved = 0

    def _save(self) -> None:
        self._manager.save(checkpoint_number=steps_done(self.model))


def steps_done(model: tf.keras.Model) -> int:
    """How many training steps a model has made.

    A model that counts them itself is asked, in `steps_done`: an optimizer does not count a step
    that overflowed in half precision, but its batch is over.
    """
    counter = model.steps_done if hasattr(model, "steps_done") else model.optimizer.iterations
    return int(counter.numpy())


def _manage(checkpoint: tf.train.Checkpoint, folder: Path) -> tf.train.CheckpointManager:
    try:
        return tf.train.CheckpointManager(checkpoint, folder, max_to_keep=2)
    except ValueError as error:
        raise bad_input("checkpoints", "a readable list of them", folder / "checkpoint") from error


def restore_newest(manager: tf.train.CheckpointManager) -> str | None:
    """Restores the newest checkpoint that can be read.

    Args:
        manager: of the checkpoints; what it tracks is overwritten.

    Returns:
        The path of the checkpoint, or None where there is none yet.

    Raises:
        InputError: if there are checkpoints and none can be read, or they are of another model.
    """
    folder = Path(manager.directory)
    for path in reversed(manager.checkpoints):
        try:
            manager.checkpoint.restore(path).assert_existing_objects_matched()
        except (tf.errors.OpError, IndexError) as error:  # IndexError: a file is cut short
            reason = " ".join(str(error).split())[:200]
            logger.warning("%s is damaged, so the one before is looked at: %s", path, reason)
        except (ValueError, AssertionError) as error:
            reason = " ".join(str(error).split())[:200]
            raise bad_input("checkpoints", "those of this model", f"{path}: {reason}") from error
        else:
            return path
    # Killed before the first one was complete, there is no list of them either.
    if manager.checkpoints or (folder / "checkpoint").exists():
        raise bad_input("checkpoints", "at least one that can be read", folder)
    return None


class EpochClock(tf.keras.callbacks.Callback):
    """Measures the seconds that the training steps of each epoch take, evaluation left out."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Starts the clock."""
        self._start = time.perf_counter()
        self._is_whole = steps_done(self.model) % self.params["steps"] == 0

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Stops the clock; the callback stands before any evaluation."""
        if self._is_whole:
            self.seconds.append(time.perf_counter() - self._start)

    @property
    def seconds_per_epoch(self) -> float | None:
        """Median over the whole epochs after the first, which also traces the graph.

        None where only a part of an epoch was left to train.
        """
        return statistics.median(self.seconds[1:] or self.seconds) if self.seconds else None


class HistoryFile(tf.keras.callbacks.Callback):
    """Keeps a CSV file of the logs of all epochs so far, with every column that any epoch had.

    Args:
        path: the file; the rows that it has already are those of an interrupted run.

    Raises:
        InputError: if rows of earlier epochs are missing.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.rows = path, read_history(path)

    def keep(self, epochs: int) -> None:
        """Forgets the rows after the first `epochs` ones."""
        if [row.get("epoch") for row in self.rows[:epochs]] != [str(n + 1) for n in range(epochs)]:
            raise bad_input("run", f"{self.path.name} with {epochs} epochs", self.path)
        self.rows = self.rows[:epochs]

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Forgets an epoch that is trained once more, because it ended after the checkpoint."""
        self.keep(epoch)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Rewrites the file."""
        row = {"epoch": epoch + 1, **(logs or {})}
        self.rows.append({name: str(value) for name, value in row.items()})
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        write_text(self.path, to_csv(self.rows, names))


def read_history(path: Path) -> list[dict[str, str]]:
    """Returns the rows of a `HistoryFile`, each with the columns that its epoch had.

    Args:
        path: the file; without one there are no rows.

    Example:
        >>> read_history(Path("nowhere.csv"))
        []
    """
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{n: x for n, x in row.items() if n and x} for row in csv.DictReader(file)]
