"""Names, tests over users, looks into a model: the parts of a comparison, on small numbers."""

from __future__ import annotations

import itertools
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from evaluation_cases import from_scores, log

from tfrs_negatives.compare import read_variants
from tfrs_negatives.compare.diagnostics import liked_popularity, score_histograms
from tfrs_negatives.compare.results import judge
from tfrs_negatives.compare.runs import RunRecord, run_configs
from tfrs_negatives.compare.statistics import QueryScores, holm, paired_test, user_differences
from tfrs_negatives.compare.variants import check_variants, folder_names
from tfrs_negatives.core.errors import InputError
from tfrs_negatives.data import RetrievalData
from tfrs_negatives.runs.config import RunConfig, load_config

# ------------------------------------------------------------------ variants


@pytest.fixture
def yaml_file(tmp_path):
    path = tmp_path / "mixed.yaml"
    path.write_text("train: {epochs: 2}\n")
    return path


def test_a_grid_is_a_product_and_its_values_are_yaml(yaml_file):
    grid = ["model.hidden=[64, 32], [8]", "task.correct=both,null", "train.learning_rate=1e-3"]
    found = read_variants([yaml_file], overrides=["train.batch_size=7"], grid=grid)
    assert list(found) == [
        "mixed, hidden=[64, 32], correct=both, learning_rate=1e-3",
        "mixed, hidden=[64, 32], correct=null, learning_rate=1e-3",
        "mixed, hidden=[8], correct=both, learning_rate=1e-3",
        "mixed, hidden=[8], correct=null, learning_rate=1e-3",
    ]
    last = list(found.values())[-1]
    assert (last.model.hidden, last.task.expansion.parts["correct"]) == ([8], None)
    assert (last.train.learning_rate, last.train.epochs, last.train.batch_size) == (0.001, 2, 7)


def test_a_grid_addresses_arguments_of_parts_and_of_recipes(yaml_file):
    grid = [
        "task.negatives.uniform.num_negatives=16,32",
        "task.loss=bpr,{triplet_hinge: {margin: 2}}",
    ]
    found = read_variants([yaml_file], grid=grid, overrides=["task.recipe=mixed_negative_sampling"])
    tasks = {name: config.model_dump()["task"] for name, config in found.items()}
    last = tasks["mixed, num_negatives=32, loss={triplet_hinge: {margin: 2}}"]
    assert last["negatives"] == ["in_batch", {"uniform": {"num_negatives": 32}}]
    assert last["loss"] == {"triplet_hinge": {"margin": 2.0, "focus": None}}
    assert [task["negatives"][1]["uniform"]["num_negatives"] for task in tasks.values()] == [
        *(16, 16),
        *(32, 32),
    ]
    check_variants(found)
    # Two ways to say one thing are one configuration.
    same = ["task.recipe.num_uniform=16", "task.negatives.uniform.num_negatives=16"]
    configs = {key: load_config(yaml_file, [key]) for key in same}
    with pytest.raises(InputError, match="different configurations"):
        check_variants(configs)


def test_a_short_key_that_two_have_is_written_out(yaml_file):
    grid = ["index.ks=[3]", "evaluation.ks=[3],[4]", "train.epochs=1"]
    assert list(read_variants([yaml_file], grid=grid)) == [
        "mixed, index.ks=[3], evaluation.ks=[3], epochs=1",
        "mixed, index.ks=[3], evaluation.ks=[4], epochs=1",
    ]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"grid": ["train.epochs"]}, "`grid`"),
        ({"grid": ["=1,2"]}, "`grid`"),
        ({"grid": ["train.epochs="]}, "at least one value"),
        ({"grid": ["train.epochs=[1"]}, "YAML"),
        ({"grid": ["train.epochs=a]: [b"]}, "`grid`"),
        ({"grid": ["train.epochs=1,1"]}, "each value once"),
        ({"grid": ["train.epochs=1", "train.epochs=2"]}, "each key once"),
        ({"grid": ["train.epochs=1,2"], "overrides": ["train.epochs=3"]}, "--set"),
        ({"grid": ["train.seed=1,2"]}, "--seeds"),
        ({"overrides": ["train.seed=1"]}, "--seeds"),
        ({"grid": ["train.epoch=1,2"]}, "perhaps `train.epochs`"),
        ({"grid": ["train.epochs=1,0"]}, "`train.epochs`"),
    ],
)
def test_bad_grids(yaml_file, options, says):
    with pytest.raises(InputError, match=says):
        read_variants([yaml_file], **options)


def test_two_files_of_one_name(yaml_file, tmp_path):
    (tmp_path / "other").mkdir()
    other = shutil.copy(yaml_file, tmp_path / "other")
    with pytest.raises(InputError, match="different names"):
        read_variants([yaml_file, other])


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ("data.min_rating=3", "`data.min_rating`: .*None as in a.*3.0 in b"),
        ("evaluation.ks=[7]", "`evaluation.ks`"),
        ("train.seed=4", "different configurations.*that of a as b"),
    ],
)
def test_variants_that_cannot_be_compared(other, says):
    with pytest.raises(InputError, match=says):
        check_variants({"a": RunConfig(), "b": load_config(overrides=[other])})


def test_variants_that_can():
    check_variants({"a": RunConfig(), "b": load_config(overrides=["train.epochs=4"])})
    with pytest.raises(InputError, match="`variants`"):
        check_variants({})


def test_folders_have_plain_names_all_different():
    names = ["<b>", "(b)", "a/../b", "..", "", "Mixed", "mixed", "x" * 300, "a, t=0.1"]
    folders = folder_names(names)
    assert folders["a, t=0.1"] == "a_t=0.1"
    assert len({folder.lower() for folder in folders.values()}) == len(names)
    for folder in folders.values():
        assert Path(folder).name == folder
        assert 0 < len(folder) < 120
        assert not folder.startswith(".")


def test_an_own_rhythm_of_evaluation_is_kept():
    config = load_config(overrides=["train.epochs=35"])
    own = load_config(overrides=["evaluation.every_epochs=7"])
    found = run_configs({"a": config, "b": own}, seed=2)
    assert [c.evaluation.every_epochs for c in found.values()] == [3, 7]
    assert [c.train.seed for c in found.values()] == [2, 2]


# ------------------------------------------------------------------ statistics


def exact_p(numbers):
    """The share of all 2^U assignments of signs whose sum is at least as far from 0."""
    sums = [sum(signed) for signed in itertools.product(*((n, -n) for n in numbers))]
    return np.mean([abs(total) >= abs(sum(numbers)) for total in sums])


@pytest.mark.parametrize("seed", range(6))
def test_the_test_is_that_of_all_flips(seed):
    # In sixths, so that the reference counts equal sums without any rounding; many are equal.
    sixths = np.random.default_rng(seed).choice([0, 2, -2, 4, 3, -6, 5], 11).tolist()
    exact = exact_p(sixths)
    found = paired_test(np.float64(np.float32(sixths) / np.float32(6)), num_flips=40_000, seed=seed)
    assert found.p == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 40_000) + 1e-4)
    assert found.mean_difference == pytest.approx(sum(sixths) / 66, abs=1e-6)


def test_closed_forms_of_the_test():
    # All as good: nothing to see. All better by the same: only two of 2^U assignments are as far.
    assert paired_test(np.zeros(9)).p == 1
    assert paired_test(np.full(5, 0.1), num_flips=99_999).p == pytest.approx(1 / 16, abs=0.004)
    # No assignment drawn: still not impossible.
    assert paired_test(np.full(200, 0.1), num_flips=99).p == 0.01
    assert paired_test(np.array([0.3])) is None
    # A user without a difference has no say in p, only in the mean.
    some = np.array([0.2, -0.1, 0.4, 0.3])
    padded = paired_test(np.append(some, np.zeros(4)))
    assert padded.p == paired_test(some).p
    assert padded.mean_difference == pytest.approx(paired_test(some).mean_difference / 2)


def test_the_interval_is_that_of_the_mean():
    x = np.array([0.1, 0.5, -0.2, 0.4])
    variance = sum((v - 0.2) ** 2 for v in x) / 3
    found = paired_test(x)
    assert found.low == pytest.approx(0.2 - 1.959964 * math.sqrt(variance / 4), abs=1e-6)
    assert found.high == pytest.approx(0.2 + 1.959964 * math.sqrt(variance / 4), abs=1e-6)
    # Of 600 samples, about 95 % of the intervals hold the truth.
    rng = np.random.default_rng(1)
    tests = [paired_test(rng.exponential(1.0, 200), num_flips=1) for _ in range(600)]
    share = np.mean([test.low <= 1 <= test.high for test in tests])
    assert 0.92 < share < 0.975


def test_without_a_difference_p_is_uniform():
    rng = np.random.default_rng(0)
    # Heavy tails, but as often up as down.
    p = [paired_test(rng.standard_t(2, 40), num_flips=199, seed=s).p for s in range(1000)]
    for level in (0.05, 0.25, 0.5, 0.75):
        deviation = math.sqrt(level * (1 - level) / 1000)
        assert np.mean(np.array(p) <= level) == pytest.approx(level, abs=4 * deviation)
    shifted = [paired_test(rng.normal(0.5, 1, 40), num_flips=199).p for _ in range(100)]
    assert np.mean(np.array(shifted) <= 0.05) > 0.7


def test_chunks_change_nothing(monkeypatch):
    x = np.random.default_rng(3).normal(0.1, 1, 64)
    whole = paired_test(x, num_flips=1001)
    monkeypatch.setattr("tfrs_negatives.compare.statistics.CHUNK_BYTES", 8 * 64 * 7)
    assert paired_test(x, num_flips=1001) == whole
    assert 1 / 1002 < whole.p < 1


def test_holm_by_hand():
    # 0.01 * 4, 0.02 * 3, 0.03 * 2 raised to the one before, 0.9 * 1.
    assert holm([0.03, 0.01, 0.9, 0.02]) == pytest.approx([0.06, 0.04, 0.9, 0.06])
    assert holm([0.5, 0.6]) == [1, 1]
    assert holm([0.04]) == [0.04]
    assert holm([]) == []


def test_holm_is_bonferroni_step_by_step():
    """Rejects the smallest while it is below level / (how many are left), as Holm writes it."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        p = rng.beta(0.3, 1, rng.integers(1, 9))
        rejected = set()
        for index in np.argsort(p):
            if p[index] > 0.05 / (len(p) - len(rejected)):
                break
            rejected.add(int(index))
        assert {i for i, x in enumerate(holm(p)) if x <= 0.05} == rejected


def scores(keys, values):
    return QueryScores(np.array(keys), np.array(values, float))


def test_users_are_paired_by_key_and_averaged_over_seeds():
    one = [scores(["a", "b", "d"], [0.5, 1, 0]), scores(["c", "b"], [0.25, 0])]
    # Another order, another user left out, and a longer name.
    two = [scores(["b", "long name", "a"], [0.5, 9, 0]), scores(["b", "c"], [1, 0.75])]
    # a: 0.5; b: (0.5 - 1) / 2; c: -0.5; d and "long name" have no partner.
    assert user_differences(one, two).tolist() == [0.5, -0.25, -0.5]
    assert user_differences(two, one).tolist() == [-0.5, 0.25, 0.5]


def test_queries_without_key_are_each_their_own():
    one = [QueryScores(None, np.array([0.5, 1.0])), QueryScores(None, np.array([0.25]))]
    two = [QueryScores(None, np.array([0.0, 1.5])), QueryScores(None, np.array([1.25]))]
    assert user_differences(one, two).tolist() == [0.5, -0.5, -1.0]


def fake_runs(means, *, users=60):
    """Runs of one seed whose scores have exactly these means, and the first two much noise."""
    noise = np.random.default_rng(0).normal(0, 0.1, users)
    noise -= noise.mean()
    keys = np.arange(users)
    return {
        name: [RunRecord({"recall_at_1": mean}, 1.0, {}, QueryScores(keys, mean + sign * noise))]
        for (name, mean), sign in zip(means.items(), (1, -1, 0), strict=True)
    }


def fake_references(popular):
    return [{"name": "most popular", "metrics": {"recall_at_1": {"mean": popular}}}]


@pytest.mark.parametrize(
    ("baseline", "pairs"),
    [
        ("c", ["b-c", "a-b", "a-c"]),
        ("b", ["c-b", "a-b", "a-c"]),
        ("a", ["a-b", "a-c"]),
    ],
)
def test_each_pair_is_tested_once(baseline, pairs):
    runs = fake_runs({"a": 0.31, "b": 0.3, "c": 0.1})
    found = judge(runs, fake_references(0.2), baseline=baseline, metric="recall_at_1")
    assert [f"{c['first']}-{c['second']}" for c in found["comparisons"]] == pairs
    advice = {"best": "a", "not_worse": ["b"], "beats_popular": True}
    assert found["recommendation"] == advice
    assert holm([c["p"] for c in found["comparisons"]]) == [
        c["p_holm"] for c in found["comparisons"]
    ]
    by_pair = {f"{c['first']}-{c['second']}": c["mean_difference"] for c in found["comparisons"]}
    assert by_pair["a-c"] == pytest.approx(0.21)


def test_a_best_that_is_no_better_than_the_most_popular():
    runs = fake_runs({"a": 0.31, "b": 0.4, "c": 0.1})
    found = judge(runs, fake_references(0.4), baseline="a", metric="recall_at_1")
    assert found["recommendation"]["best"] == "b"
    assert not found["recommendation"]["beats_popular"]


# ------------------------------------------------------------------ diagnostics


def test_scores_of_positives_and_of_random_items():
    # Each query gives its own item 2 and every other item its row / 10.
    matrix = np.tile(np.arange(5) / 10, (5, 1))
    np.fill_diagonal(matrix, 2.0)
    model = from_scores(matrix)
    test = log(*[(row, row) for row in range(5)] * 4000)
    found = score_histograms(model, RetrievalData(test, test, model.items, "five"))
    positives, random = np.array(found["positives"]), np.array(found["random"])
    assert positives[-1] == positives.sum() == random.sum() == 20_000
    # A random item is the positive in one of five draws; a tie is half a success.
    assert random[-1] / 20_000 == pytest.approx(1 / 5, abs=0.012)
    assert found["auc"] == pytest.approx(1 - 1 / 10, abs=0.006)
    assert (found["edges"][0], found["edges"][-1], len(found["edges"])) == (0, 2, 41)
    assert random[0] / 20_000 == pytest.approx(4 / 25, abs=0.011)


def test_one_score_for_all_has_a_histogram():
    model = from_scores(np.ones((2, 3)))
    test = log((0, 0), (1, 2))
    found = score_histograms(model, RetrievalData(test, test, model.items, "flat"))
    assert (sum(found["positives"]), sum(found["random"]), found["auc"]) == (2, 2, 0.5)


def test_liked_popularity_is_the_mean_over_queries():
    model = from_scores(np.zeros((2, 4)))
    train = log((0, 0), (0, 1), (1, 1), (1, 2), (0, 1))
    test = log((0, 2), (0, 3), (0, 1), (1, 1), (1, 1))
    data = RetrievalData(train, test, model.items, "small")
    # Events: item 1 has 3, items 0 and 2 one, item 3 none. Query 0: (1 + 0 + 3) / 3, query 1: 3.
    assert liked_popularity(data, exclude=None) == pytest.approx((4 / 3 + 3) / 2)
    # Without what was seen in training query 0 has items 2 and 3 left and query 1 nothing.
    assert liked_popularity(data, exclude=train) == pytest.approx(0.5)
