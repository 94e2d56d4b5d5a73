"""Tuning ScaNN: the target is met, nothing tried that met it was faster, all of it is on record."""

import logging
from dataclasses import asdict
from itertools import pairwise

import numpy as np
import pytest
import tensorflow as tf
from index_cases import make_model

from tfrs_negatives.index import build_index
from tfrs_negatives.index.build.tuning import Trial, tune
from tfrs_negatives.index.search.backends import Depth, ExactSearch, ScannSearch, ScannSettings


@pytest.fixture(scope="module")
def clustered():
    generator = np.random.default_rng(0)
    centres = generator.normal(size=[40, 16])
    vectors = centres[generator.integers(0, 40, 4000)] + 0.4 * generator.normal(size=[4000, 16])
    queries = vectors[:300] + 0.4 * generator.normal(size=[300, 16])
    return vectors.astype(np.float32), queries.astype(np.float32)


@pytest.fixture(scope="module")
def tuned(clustered):
    return tune(*clustered, k=10, target=0.9)


def slow_recall(search, vectors, queries, k, *, last=None):
    """By ids, from scores in float64; of the last ones of the top k."""
    scores = queries.astype(np.float64) @ vectors.astype(np.float64).T
    best = np.argsort(-scores, axis=1)[:, k - (last or k) : k]
    _, rows = search.search_arrays(queries, k)
    shares = [len(set(a) & set(b)) / len(a) for a, b in zip(best, rows, strict=True)]
    return np.mean(shares)


def test_the_target_is_met_at_every_depth(tuned, clustered):
    search, _, recall = tuned
    vectors, queries = clustered
    assert [depth.k for depth in search.settings.depths] == [10, 100, 1000]
    assert recall == pytest.approx(slow_recall(search, vectors, queries, 10))
    for k in (10, 100, 1000):
        assert slow_recall(search, vectors, queries, k) >= 0.9 - 1e-9
        # The last ten are found as well as the first.
        assert slow_recall(search, vectors, queries, k, last=10) >= 0.9 - 1e-9


def test_other_queries_meet_the_target_too(tuned, clustered):
    search, sweep, recall = tuned
    (chosen,) = (t for t in sweep if t["chosen"] and t["k"] == 10)
    assert chosen["recall"] == recall > chosen["lower"] >= 0.9
    vectors, _ = clustered
    others = vectors[300:2300] + 0.4 * np.random.default_rng(9).normal(size=[2000, 16])
    assert slow_recall(search, vectors, others.astype(np.float32), 10) >= 0.9


def test_the_fastest_that_meets_the_target_is_chosen(tuned):
    search, sweep, _ = tuned
    for k in (10, 100, 1000):
        trials = [trial for trial in sweep if trial["k"] == k]
        (chosen,) = (trial for trial in trials if trial["chosen"])
        met = [trial for trial in trials if trial["lower"] >= 0.9]
        assert chosen["milliseconds"] == min(trial["milliseconds"] for trial in met)
        assert Depth(k, chosen["leaves"], chosen["reorder"]) in search.settings.depths
        assert chosen["num_leaves"] == search.settings.num_leaves
    at_10 = [trial for trial in sweep if trial["k"] == 10]
    assert {trial["num_leaves"] for trial in at_10} == {32, 63, 126}


def test_leaves_are_doubled_and_then_halved(tuned):
    _, sweep, _ = tuned
    first = [t for t in sweep if (t["num_leaves"], t["reorder"], t["k"]) == (32, 50, 10)]
    leaves = [trial["leaves"] for trial in first]
    met = [trial["lower"] >= 0.9 for trial in first]
    doublings = met.index(True) if any(met) else len(met) - 1
    for before, after in pairwise(leaves[: doublings + 1]):
        assert after == min(2 * before, 32)
    assert all(leaf < leaves[doublings] for leaf in leaves[doublings + 1 :])


def test_what_cannot_be_reached_is_said(monkeypatch, caplog):
    # Only the best by four-bit codes is ever scored exactly.
    monkeypatch.setattr("tfrs_negatives.index.build.tuning._REORDERS", (1,))
    noise = np.random.default_rng(2).normal(size=[2000, 32]).astype(np.float32)
    with caplog.at_level(logging.WARNING):
        search, sweep, recall = tune(noise[:1200], noise[1200:], k=1, target=1.0)
    assert recall == max(trial["recall"] for trial in sweep if trial["k"] == 1) < 1
    assert f"recall at 1 is {recall:.3f}, below the target of 1.0" in caplog.text
    assert search.settings.depths[0].k == 1


def test_a_small_corpus_is_scored_whole_and_needs_one_trial():
    vectors = np.random.default_rng(0).normal(size=[50, 4]).astype(np.float32)
    search, sweep, recall = tune(vectors, vectors[:20], k=10, target=0.95)
    assert (search.settings.num_leaves, recall) == (1, 1.0)
    assert len(sweep) == 1


def test_a_search_looks_as_deep_as_k_asks():
    depths = (Depth(10, 2, 50), Depth(100, 7, 200))
    settings = ScannSettings(num_leaves=40, depths=depths)
    found = {
        k: tuple(int(n) for n in settings.depth_of(tf.constant(k))) for k in (1, 10, 11, 100, 150)
    }
    assert found == {1: (2, 50), 10: (2, 50), 11: (7, 200), 100: (7, 200), 150: (11, 300)}
    traced = tf.function(settings.depth_of)
    assert [int(n) for n in traced(tf.constant(150))] == [11, 300]


def test_settings_survive_a_manifest():
    settings = ScannSettings(num_leaves=40, depths=(Depth(10, 2, 50), Depth(100, 7, 200)))
    assert ScannSettings.from_record(asdict(settings)) == settings


def test_exact_and_scann_share_their_vectors():
    exact = ExactSearch(np.ones([4, 2], np.float32))
    assert ScannSearch(exact.vectors(), ScannSettings.rule_of_thumb(4)).vectors() is (
        exact.vectors()
    )


def test_the_sweep_is_part_of_the_index():
    index = build_index(make_model(2000), kind="scann", target_recall=0.8)
    assert index.recall["recall"] >= 0.8
    assert set(index.sweep[0]) == {*Trial.__dataclass_fields__, "chosen"}
    assert build_index(make_model(2000), kind="exact").sweep == []


@pytest.mark.parametrize("num_items", [1, 2, 9, 999, 1000, 1001])
def test_a_corpus_of_any_size_is_tuned(num_items):
    index = build_index(make_model(num_items), kind="scann")
    assert index.top_k({"user_id": [1]}, 1)[1].shape == (1, 1)
    assert index.recall["recall"] >= 0.95
