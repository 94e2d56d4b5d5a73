"""Settings are chosen on a share of the training events; the test part is out of reach then."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import yaml
from test_cli import SMALL

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.data import Interactions, load
from tfrs_negatives.data.splits import SPLITS, random, validation
from tfrs_negatives.runs import folder as run_folder
from tfrs_negatives.runs import train as experiments
from tfrs_negatives.runs.config import load_config
from tfrs_negatives.runs.train import load_data

SPLIT_NAMES = ["random", "by_user", "leave_last_out", "by_time"]


@pytest.fixture(scope="module")
def source(log_file):
    return f"data.source=csv:{log_file}"


def config_of(source, *overrides):
    return load_config(overrides=[source, *SMALL, *overrides])


def events(log):
    """Each event by its time, which no two events of the log share."""
    return set(log.timestamps.tolist())


@pytest.mark.parametrize("split", SPLIT_NAMES)
@pytest.mark.parametrize("fraction", [0.1, 0.5])
def test_it_is_cut_out_of_the_training_part_and_the_test_part_is_gone(source, split, fraction):
    cut = f"data.split={split}"
    whole = load_data(config_of(source, cut))
    held_out = load_data(config_of(source, cut, f"data.validation_fraction={fraction}"))
    assert not events(held_out.train) & events(held_out.test)
    assert events(held_out.train) | events(held_out.test) == events(whole.train)
    assert not events(held_out.test) & events(whole.test)
    users, last = whole.train.query_features["user"], held_out.test.query_features["user"]
    if split == "by_user":
        assert len(set(last)) == round(fraction * len(set(users)))
    elif split == "leave_last_out":  # there are no more last events than users
        assert len(last) == min(round(fraction * len(users)), len(set(users)))
    else:
        assert len(last) == round(fraction * len(users))
    assert len(held_out.train) + len(held_out.test) == len(whole.train)


def test_what_is_counted_comes_from_the_reduced_part_and_the_catalogue_stays_whole(source):
    whole = load_data(config_of(source))
    held_out = load_data(config_of(source, "data.validation_fraction=0.5"))
    assert held_out.items.ids.tolist() == whole.items.ids.tolist()
    counts = held_out.train.item_counts(held_out.items)
    expected = dict.fromkeys(whole.items.ids.tolist(), 0)
    for item in held_out.train.item_ids.tolist():
        expected[item] += 1
    assert counts.tolist() == list(expected.values())
    assert counts.sum() < whole.train.item_counts(whole.items).sum()
    assert (whole.name, held_out.name) == ("csv:events.csv", "csv:events.csv, validation")


def test_all_seeds_and_samplers_see_one_part_of_one_training_part(source):
    cut = ["data.split=by_time", "data.validation_fraction=0.2"]
    variants = [["train.seed=0"], ["train.seed=7"], ["train.seed=7", "task.correct=null"]]
    first, *others = (load_data(config_of(source, *cut, *more)) for more in variants)
    for other in others:
        assert other.test.timestamps.tolist() == first.test.timestamps.tolist()
        assert other.train.timestamps.tolist() == first.train.timestamps.tolist()


def test_it_is_no_slice_of_the_log_and_not_the_draw_of_a_test_part():
    log = Interactions({"user": np.arange(400) % 20}, np.arange(400), query_key="user")
    _, chosen = validation(log, fraction=0.25)
    # A mean of 100 draws out of 0..399 without replacement: 199.5, deviation 10.
    assert abs(chosen.item_ids.mean() - 199.5) < 40
    for seed in (0, 1, 2**31 - 1):
        other = random(log, test_fraction=0.25, seed=seed)[1].item_ids
        # Two independent draws have 25 in common, deviation 3.8.
        assert len(np.intersect1d(chosen.item_ids, other)) < 45


def test_each_event_keeps_its_columns_and_its_place():
    users = np.arange(40) % 7
    log = Interactions(
        {"user": users}, np.arange(40), "user", 100 + np.arange(40), np.linspace(0, 1, 40)
    )
    for part in validation(log, fraction=0.3):
        rows = part.item_ids
        assert (np.diff(rows) > 0).all()
        assert (part.query_features["user"] == users[rows]).all()
        assert (part.timestamps == 100 + rows).all()
        assert (part.weights == np.linspace(0, 1, 40, dtype=np.float32)[rows]).all()


def test_the_truth_of_the_generator_is_not_that_of_a_part():
    part = load("synthetic", validation_fraction=0.1)
    assert part.truth is None
    assert part.name == "synthetic, validation"


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("0", "`data.validation_fraction`: expected greater than 0"),
        ("1", "`data.validation_fraction`: expected less than 1"),
        ("0.0001", "`validation_fraction`: expected a share that leaves something on both sides"),
    ],
)
def test_bad_shares(source, value, says):
    with pytest.raises(InputError, match=says):
        load_data(config_of(source, f"data.validation_fraction={value}"))


def test_a_run_says_on_what_it_was_measured_and_never_meets_the_test_part(
    source, tmp_path, monkeypatch
):
    config = config_of(source, "data.validation_fraction=0.2", "evaluation.every_epochs=1")
    hidden = events(load_data(config_of(source)).test)
    met = set()

    def spy(name):
        method = getattr(Interactions, name)

        def call(self, *args, **kwargs):
            met.update(events(self))
            return method(self, *args, **kwargs)

        monkeypatch.setattr(Interactions, name, call)

    for name in ("queries", "item_rows", "item_counts", "gather_rows", "stream"):
        spy(name)
    # The rows are looked up in the catalogue before the cut: that is not what is spied on.
    data = load_data(config)
    met.clear()
    metrics = experiments.train_run(config, tmp_path / "run", data=data)
    assert met == events(data.train) | events(data.test)
    assert not met & hidden
    assert metrics["data"] == "csv:events.csv, validation"
    again = experiments.evaluate_run(tmp_path / "run").metrics
    assert again == pytest.approx(metrics["test"])


class Stopped(RuntimeError):
    pass


@pytest.fixture(scope="module")
def stopped(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopped")

    def stop(*args, **kwargs):
        raise Stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiments, "evaluate", stop)
        with pytest.raises(Stopped):
            experiments.train_run(config_of(source, "data.validation_fraction=0.2"), folder / "run")
    return folder


@pytest.fixture
def interrupted(stopped, tmp_path):
    """The name of a run on a validation part that stopped while its vectors were evaluated."""
    shutil.copytree(stopped, tmp_path / "runs")
    return tmp_path / "runs" / "run"


def test_a_run_goes_on_with_the_same_parts(interrupted, source, tmp_path):
    work = run_folder.unfinished_of(interrupted)
    log = json.loads((work / "checkpoints" / "log.json").read_text())
    assert (log["training rows"], log["test rows"]) == (256, 64)
    metrics = experiments.resume_run(interrupted)
    whole = experiments.train_run(
        config_of(source, "data.validation_fraction=0.2"), tmp_path / "whole"
    )
    assert metrics["test"] == whole["test"]
    assert metrics["data"] == whole["data"]


def test_a_run_does_not_go_on_with_the_test_part(interrupted):
    path = run_folder.unfinished_of(interrupted) / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["data"]["validation_fraction"] = None
    # Written in place: the run is locked by this file.
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(InputError, match="training rows 320 for 256"):
        experiments.resume_run(interrupted)


def test_the_splits_are_all_tried_here():
    assert sorted(SPLIT_NAMES) == sorted(SPLITS)
