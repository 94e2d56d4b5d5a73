"""Two sides that meet have ids of one kind, or one sentence says which has not."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.data import Interactions
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.evaluation.held_out import hold_out
from tfrs_negatives.step.frequency import ExactFrequency, StreamingFrequency
from tfrs_negatives.step.masks.known_positives import KnownPositives
from tfrs_negatives.step.samplers import Explicit, InBatch, LogUniform, Uniform, Weighted
from tfrs_negatives.step.score import ItemBias
from tfrs_negatives.step.task import Retrieval

TEXTS, NUMBERS = ItemCatalogue(["7", "8", "9"]), ItemCatalogue([7, 8, 9])
COUNTS = [3, 1, 2]


def history(item_ids):
    return Interactions({"user": [1, 2]}, item_ids, query_key="user")


def step(task, ids, **features):
    vectors = tf.eye(2, 4)
    return task(
        vectors,
        vectors,
        candidate_ids=tf.convert_to_tensor(ids),
        features={"user": tf.constant([1, 2]), **features},
        encode_items=lambda f: tf.one_hot(tf.range(tf.shape(f["item_id"])[0]), 4),
        training=True,
    )


def tasks(items):
    return {
        "frequency": Retrieval(frequency=ExactFrequency(items.ids, COUNTS)),
        "item_bias": Retrieval(item_bias=ItemBias(items.ids, COUNTS)),
        "masks[0]": Retrieval(masks=[KnownPositives(history(items.ids[:2]), items)]),
        "negatives[0]": Retrieval(negatives=[Uniform(items, 2)]),
        "negatives[1]": Retrieval(
            negatives=[InBatch(), Weighted(LogUniform(items, 2, counts=COUNTS), 0.5)],
            frequency=StreamingFrequency(),
        ),
    }


@pytest.mark.parametrize("name", tasks(TEXTS))
@pytest.mark.parametrize("graph", [False, True])
def test_a_part_of_texts_beside_a_batch_of_integers_is_named(name, graph):
    task = tasks(TEXTS)[name]

    def call(ids):
        return step(task, ids)

    call = tf.function(call) if graph else call
    with pytest.raises(InputError) as caught:
        call(tf.constant([7, 8], tf.int64))
    expected = f"`{name}`: expected ids that are integers, as in candidate_ids. Received: strings"
    assert str(caught.value) == expected


@pytest.mark.parametrize("name", tasks(NUMBERS))
def test_the_same_parts_of_the_kind_of_the_batch_train(name):
    assert np.isfinite(step(tasks(NUMBERS)[name], [7, 8]).numpy())
    with pytest.raises(InputError, match="expected ids that are strings, as in candidate_ids"):
        step(tasks(NUMBERS)[name], ["7", "8"])


def test_a_column_of_negatives_is_compared_with_the_catalogue():
    task = Retrieval(negatives=[Explicit("rejected", NUMBERS)])
    with pytest.raises(InputError, match=r"`features\['rejected'\]`: .*integers, as in the catal"):
        step(task, [7, 8], rejected=tf.constant([["9"], ["9"]]))
    assert np.isfinite(step(task, [7, 8], rejected=tf.constant([[9], [9]])).numpy())


def test_a_catalogue_is_asked_for_ids_of_its_kind():
    with pytest.raises(InputError, match=r"`ids`: expected ids that are strings, as in the catal"):
        TEXTS.rows([7])
    with pytest.raises(InputError, match="`ids`: expected ids that are integers"):
        NUMBERS.rows(["7"])
    assert NUMBERS.rows_of_keys(tf.constant([8], tf.int64)).numpy().tolist() == [1]


def test_a_log_is_compared_with_the_catalogue():
    with pytest.raises(InputError, match="`item_ids`: expected ids that are strings"):
        history([7, 8]).item_rows(TEXTS)
    with pytest.raises(InputError, match=r"`history.item_ids`: expected ids that are strings"):
        KnownPositives(history([7, 8]), TEXTS)
    with pytest.raises(InputError, match="`item_ids`"):
        hold_out(history(["7", "8"]), NUMBERS, exclude=None)


def test_two_logs_name_their_queries_alike():
    texts = Interactions({"user": ["1", "2"]}, [7, 8], query_key="user")
    with pytest.raises(InputError, match="`exclude`"):
        hold_out(history([7, 8]), NUMBERS, exclude=texts)


def test_retrieval_vectors_with_a_bias_want_ids_of_its_kind():
    task = Retrieval(item_bias=ItemBias(TEXTS.ids, COUNTS))
    with pytest.raises(InputError, match=r"`ids`: .*strings, as in the item bias"):
        task.affinity.retrieval_vectors(tf.eye(2, 4), tf.constant([7, 8]))
