"""A small training run with all that has state, and a program that kills it.

python killable.py FOLDER CALLBACK KILL_AFTER
"""

from __future__ import annotations

import os
import signal
import sys

import numpy as np
import tensorflow as tf

from tfrs_negatives.data import Interactions, RetrievalData
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.runs.build import build_model
from tfrs_negatives.runs.checkpoints import Checkpoints
from tfrs_negatives.runs.config import load_config

EVENTS, ITEMS, BATCH, EPOCHS, STEPS = 58, 12, 8, 3, 8  # 58 events are 7 full batches and one of 2
OPTIMIZERS = {"ours": "sparse_adam", "keras": "adagrad"}


def make_data():
    rng = np.random.default_rng(0)
    users = rng.integers(0, 9, EVENTS)
    items = ItemCatalogue(np.arange(ITEMS), {"kind": np.arange(ITEMS) % 3}, item_key="item")
    log = Interactions(
        {"user": users, "age": users * 1.5}, rng.integers(0, ITEMS, EVENTS), query_key="user"
    )
    return RetrievalData(log, log, items, "tiny")


def make_model(optimizer="sparse_adam", seed=0, *overrides):
    tf.keras.utils.set_random_seed(seed)
    return build_model(
        load_config(
            overrides=[
                "model.embedding_dim=4",
                "model.hidden=[6]",
                "model.output_dim=4",
                "model.id_dropout=0.3",
                "model.learn_temperature=true",
                "model.item_bias=true",
                *([] if overrides else ["task.recipe.num_uniform=7"]),
                "task.masks=[accidental_hits]",
                "task.loss={sl_at_k: {k: 3, width: 5.0}}",
                "train.learning_rate=0.05",
                f"train.optimizer={optimizer}",
                *overrides,
            ]
        ),
        make_data(),
    )


def fit(model, start, *callbacks, epochs=EPOCHS):
    """Trains with the batches from `start` on; returns the losses of the epochs."""
    stream = make_data().train.stream(BATCH, item_key="item", start_step=start)
    history = model.fit(
        stream, steps_per_epoch=STEPS, epochs=epochs, callbacks=list(callbacks), verbose=0
    )
    return history.history.get("loss", [])


def train_with_ours(model, folder, *callbacks):
    checkpoints = Checkpoints(folder, every_steps=5)
    return fit(model, checkpoints.restore(model), checkpoints, *callbacks)


def train_with_keras(model, folder, *callbacks):
    backup = tf.keras.callbacks.BackupAndRestore(str(folder), save_freq=5)
    # It restores inside of `fit`, so the step that the data begins with is read before.
    newest = tf.train.latest_checkpoint(f"{folder}/chief")
    name = "model/optimizer/_iterations/.ATTRIBUTES/VARIABLE_VALUE"
    start = 0 if newest is None else int(tf.train.load_variable(newest, name))
    return fit(model, start, backup, *callbacks)


TRAIN = {"ours": train_with_ours, "keras": train_with_keras}


def state_of(model):
    """Every variable but the metrics: weights, optimizer, frequency table, counters, item bias."""
    variables = [*model.variables, *model.optimizer.variables]
    metrics = {v.ref() for metric in model.metrics for v in metric.variables}
    # Keras counts the layers of a process in their names.
    return [(v.name.split("/")[-1], v.numpy()) for v in variables if v.ref() not in metrics]


class After(tf.keras.callbacks.Callback):
    """Does something in the middle of training, after a step."""

    def __init__(self, step, action):
        super().__init__()
        self.step, self.action = step, action

    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.optimizer.iterations) == self.step:
            self.action()


def kill():
    """Ends this process as the out-of-memory killer would."""
    os.kill(os.getpid(), signal.SIGKILL)


def train_until(kind, folder, step, action):
    model = make_model(OPTIMIZERS[kind], seed=5)
    TRAIN[kind](model, f"{folder}/{kind}", After(step, action))


if __name__ == "__main__":
    # The second training begins inside the first, so that one kill meets both half-way.
    folder, step = sys.argv[1], int(sys.argv[2])
    train_until("ours", folder, step, lambda: train_until("keras", folder, step, kill))
