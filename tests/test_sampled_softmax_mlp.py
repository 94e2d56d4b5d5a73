"""The sampled softmax classifier is `tf.nn.sampled_softmax_loss` on the same draws."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.data import Interactions, RetrievalData
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.model.recipes import sampled_softmax_mlp
from tfrs_negatives.runs.build import build_model
from tfrs_negatives.runs.config import load_config
from tfrs_negatives.step.losses import SampledSoftmax
from tfrs_negatives.step.records import Miner
from tfrs_negatives.step.score import ItemBias

N, B, D, DRAWS = 60, 8, 6, 40
RNG = np.random.default_rng(2)
EVENTS = np.concatenate([np.arange(N), RNG.zipf(1.3, 300) % N])
# Ids in another order than the rows, so that one taken for the other is seen.
IDS = RNG.permutation(N) + 50
LOG = Interactions({"user": np.arange(len(EVENTS))}, IDS[EVENTS], query_key="user")
ITEMS = ItemCatalogue(IDS)
COUNTS = np.bincount(EVENTS, minlength=N)
QUERIES = RNG.normal(size=(B, D)).astype(np.float32)
TABLE = RNG.normal(size=(N, D)).astype(np.float32)


class Seen(Miner):
    reads_scores = True

    def mine(self, scored, batch):
        self.given = scored
        return scored


def by_rank(rank):
    return np.log((rank + 2) / (rank + 1)) / np.log(N + 1)


def probabilities(draws):
    if draws == "unigram":
        return COUNTS / COUNTS.sum()
    ranks = np.argsort(np.argsort(-COUNTS, kind="stable"))
    return by_rank(ranks)


@pytest.mark.parametrize("draws", ["unigram", "log_uniform"])
@pytest.mark.parametrize("with_bias", [False, True])
def test_it_is_the_loss_of_tensorflow_on_the_same_ids_and_counts(draws, with_bias):
    seen = Seen()
    bias = ItemBias(IDS, COUNTS) if with_bias else None
    score = {"similarity": "dot", "temperature": 1.0, "item_bias": bias, "miners": [seen]}
    task = sampled_softmax_mlp(ITEMS, history=LOG, draws=draws, num_negatives=DRAWS, **score)
    table, queries = tf.Variable(TABLE), tf.constant(QUERIES)

    def encode_items(features):
        return tf.gather(table, ITEMS.rows(features["item_id"]))

    task(queries, queries, candidate_ids=IDS[:B], encode_items=encode_items, training=False)
    rows, copies = np.unique(ITEMS.rows_of_keys(seen.given.ids), return_counts=True)
    # TensorFlow removes one copy of a hit only, as it expects distinct draws.
    hits, others = rows[copies == 1], np.setdiff1d(np.arange(N), rows)
    positives = np.concatenate([hits[: B // 2], others])[:B]
    assert min(len(hits), len(others)) >= 3
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(queries)
        ids = {"candidate_ids": IDS[positives], "encode_items": encode_items}
        loss = task(queries, tf.gather(table, positives), **ids, training=False)
        sampled = ITEMS.rows_of_keys(seen.given.ids)
        expected_count = tf.constant(DRAWS * probabilities(draws), tf.float32)
        theirs = tf.nn.sampled_softmax_loss(
            weights=table,
            biases=tf.zeros([N]) if bias is None else bias.bias[:N],
            labels=positives[:, None],
            inputs=queries,
            num_sampled=DRAWS,
            num_classes=N,
            sampled_values=(
                sampled,
                tf.gather(expected_count, positives)[:, None],
                tf.gather(expected_count, sampled),
            ),
            remove_accidental_hits=True,
        )
        mean = tf.reduce_mean(theirs)
    assert np.isin(positives, sampled).sum() == min(len(hits), B // 2)
    np.testing.assert_allclose(SampledSoftmax()(seen.given), theirs, rtol=1e-6, atol=1e-6)
    assert float(loss) == pytest.approx(float(mean), rel=1e-6)
    for variable in (queries, table, *task.trainable_variables):
        ours, wanted = (tf.convert_to_tensor(tape.gradient(x, variable)) for x in (loss, mean))
        np.testing.assert_allclose(ours, wanted, atol=1e-6)


def test_without_a_log_there_is_nothing_to_count():
    with pytest.raises(InputError, match="`history`: expected the training log"):
        sampled_softmax_mlp(ITEMS)


def test_a_configuration_makes_the_classifier():
    data = RetrievalData(LOG, LOG, ITEMS, "small")
    tower = "tfrs_negatives.towers.build:id_vectors"
    model = build_model(
        load_config(
            overrides=[
                *("task.recipe=sampled_softmax_mlp", "task.recipe.num_negatives=7"),
                *("model.embedding_dim=5", "model.hidden=[16]", "model.output_dim=4"),
                *("model.similarity=dot", "model.temperature=1.0", "model.item_bias=true"),
                f"model.item_tower={tower}",
            ]
        ),
        data,
    )
    shapes = [tuple(w.shape) for w in model.query_tower.get_weights()]
    assert shapes[1:] == [(5, 16), (16,), (16, 4), (4,)]
    assert [w.shape[1] for w in model.item_tower.get_weights() if w.ndim == 2] == [4]
    assert model.task.negatives[0].counts.tolist() == COUNTS.tolist()
    model.fit(LOG.dataset(64, item_key="item_id"), verbose=0)


def test_an_item_tower_of_ids_alone_has_no_other_feature():
    items = ItemCatalogue(IDS, {"age": np.arange(N) * 1.0})
    config = load_config(overrides=["model.item_tower=tfrs_negatives.towers.build:id_vectors"])
    with pytest.raises(InputError, match="the id alone"):
        build_model(config, RetrievalData(LOG, LOG, items, "small"))
