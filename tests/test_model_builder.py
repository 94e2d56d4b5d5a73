"""What a configuration becomes: masks of the hard recipes, the curriculum of the clusters."""

from __future__ import annotations

import numpy as np
import pytest

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.data import Interactions, RetrievalData
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.runs.build import build_batches, build_model
from tfrs_negatives.runs.config import load_config

SMALL = ["model.embedding_dim=2", "model.hidden=[4]", "model.output_dim=2"]


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    users = np.concatenate([np.arange(80), rng.integers(0, 80, 120)])
    log = Interactions({"user": users}, rng.integers(0, 9, 200), query_key="user")
    return RetrievalData(log, log, ItemCatalogue(np.arange(9)), "small")


@pytest.mark.parametrize("recipe", ["ngame", "cross_batch_ngame", "dynamic_negative_sampling"])
@pytest.mark.parametrize(
    ("hits", "names"),
    [
        ("null", ["KnownPositives"]),
        ("false", ["KnownPositives"]),
        ("true", ["AccidentalHits", "KnownPositives"]),
    ],
)
def test_hard_recipes_leave_out_the_history_whatever_is_said_of_copies(data, recipe, hits, names):
    keys = [f"negatives.recipe={recipe}", f"negatives.remove_accidental_hits={hits}"]
    task = build_model(load_config(overrides=[*SMALL, *keys]), data).task
    assert [type(mask).__name__ for mask in task.masks] == names


def test_a_run_takes_the_mean_over_the_batch(data):
    assert build_model(load_config(overrides=SMALL), data).task.reduction == "mean"


def test_a_log_whose_events_are_queries_has_no_history():
    log = Interactions({"user": np.arange(3)}, np.arange(3))
    data = RetrievalData(log, log, ItemCatalogue(np.arange(3)), "no key")
    keys = ["negatives.recipe=dynamic_negative_sampling"]
    task = build_model(load_config(overrides=[*SMALL, *keys]), data).task
    assert [type(mask).__name__ for mask in task.masks] == ["AccidentalHits"]


def test_random_batches_need_no_clusters(data):
    assert build_batches(load_config(), data, item_key="item_id") is None
    random = load_config(overrides=["negatives.recipe=ngame", "batches.order=random"])
    assert build_batches(random, data, item_key="item_id") is None


@pytest.mark.parametrize(
    ("epochs", "sizes"), [(4, [1, 2, 4, 8]), (8, [1, 1, 2, 2, 4, 4, 8, 8]), (2, [1, 2])]
)
def test_by_itself_the_size_doubles_until_few_clusters_are_left(data, epochs, sizes):
    # 80 users, at least 10 clusters: three doublings.
    keys = ["batches.order=clustered", f"train.epochs={epochs}"]
    batches = build_batches(load_config(overrides=keys), data, item_key="item_id")
    assert [80 / batches.num_clusters(epoch) for epoch in range(epochs)] == sizes


def test_a_curriculum_of_ones_own(data):
    keys = ["batches.cluster_size=3", "batches.double_every=2", "batches.max_cluster_size=5"]
    config = load_config(overrides=["batches.order=clustered", *keys])
    batches = build_batches(config, data, item_key="item_id")
    assert [batches.cluster_size(epoch) for epoch in range(5)] == [3, 3, 5, 5, 5]


BARE = ["model.hidden=[]", "model.output_dim=null", "model.embedding_dim=4"]


def test_the_learning_rate_falls_to_nothing_over_all_epochs(data):
    keys = ["train.schedule=cosine", "train.epochs=3", "train.batch_size=50"]
    optimizer = build_model(load_config(overrides=[*BARE, *keys]), data).optimizer
    schedule = optimizer._learning_rate
    # 200 events are 4 steps an epoch.
    rates = [float(schedule(step)) for step in (0, 6, 12)]
    assert rates == pytest.approx([0.003, 0.0015, 0.0])


def test_rows_of_length_1(data):
    model = build_model(load_config(overrides=[*BARE, "train.unit_rows=true"]), data)
    model.fit(data.train.dataset(50, item_key="item_id"), verbose=0)
    for tower in (model.query_tower, model.item_tower):
        (table,) = tower.trainable_variables
        lengths = np.linalg.norm(table.numpy(), axis=1)
        # All but the rows of the unknown and of the padding.
        assert np.isclose(lengths, 1, atol=1e-5).sum() == len(lengths) - 2


@pytest.mark.parametrize(
    "wrong",
    ["model.hidden=[4]", "model.output_dim=4", "model.similarity=dot", "train.optimizer=adagrad"],
)
def test_rows_of_length_1_are_refused_elsewhere(data, wrong):
    config = load_config(overrides=[*BARE, "train.unit_rows=true", wrong])
    with pytest.raises(InputError, match=r"train\.unit_rows"):
        build_model(config, data)
