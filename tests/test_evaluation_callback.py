from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from evaluation_cases import log

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.evaluation import TopKEvaluation


class Trainable(tf.keras.Model):
    """Learns nothing; the score of item 0 falls with every epoch that passes."""

    def __init__(self):
        super().__init__()
        self.items = ItemCatalogue(100 + np.arange(4))
        self.step = self.add_weight(name="step", shape=[], initializer="zeros", trainable=False)

    def call(self, inputs):
        return inputs

    def train_step(self, data):
        self.step.assign_add(1.0)
        return {"loss": self.step}

    def query_vectors(self, features):
        return tf.ones([len(features["user_id"]), 1])

    def item_vectors(self, features):
        height = {100: 3.5 - self.step, 101: 1.0, 102: 2.0, 103: 0.0}
        return tf.stack([height[i] for i in features["item_id"].numpy().tolist()])[:, None]


def fit(*callbacks, epochs=6):
    model = Trainable()
    model.compile()
    history = model.fit(np.zeros([1, 1]), epochs=epochs, verbose=0, callbacks=list(callbacks))
    return history.history


def test_callback_stops_training_on_recall():
    # The score of item 0 is 2.5, 1.5, 0.5, -0.5 against 2, 1 and 0: ranks 1, 2, 3, 4.
    evaluation = TopKEvaluation(log((0, 0)), ks=(1, 2), train=log((0, 0)))
    stop = tf.keras.callbacks.EarlyStopping("val_recall_at_2", mode="max", patience=1)
    history = fit(evaluation, stop)
    assert history["val_recall_at_2"] == [1, 1]
    assert history["val_mrr_at_2"] == [1, 0.5]
    assert history["val_head_recall_at_1"] == [1, 0]
    assert history["loss"] == [1, 2]


def test_callback_leaves_the_other_epochs_alone():
    history = fit(TopKEvaluation(log((0, 0)), ks=[2], every_epochs=2), epochs=5)
    assert history["val_recall_at_2"] == [1, 0]
    assert history["val_mrr_at_2"] == [0.5, 0]
    assert len(history["loss"]) == 5


def test_callback_finds_bad_data_before_the_first_epoch():
    with pytest.raises(InputError, match="`ks`: expected at most 4"):
        fit(TopKEvaluation(log((0, 0)), ks=[5]))
    with pytest.raises(InputError, match="`every_epochs`: expected a positive integer"):
        TopKEvaluation(log((0, 0)), every_epochs=0)
