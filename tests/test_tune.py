"""`tune`: the grammar of a space, what survives a kill, what is pruned, what is written."""

from __future__ import annotations

import csv
import gc
import json
import math
import os
import sys

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import optuna
import pytest
from matplotlib import image
from test_cli import SMALL

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.data import Interactions
from tfrs_negatives.runs.config import load_config, parse_yaml
from tfrs_negatives.runs.train import load_data, train_run
from tfrs_negatives.tune import driver, run_tuning
from tfrs_negatives.tune.folder import open_folder, open_study
from tfrs_negatives.tune.space import check_space, parse_space, size_of

METRIC = "recall_at_5"
FILES = [".lock", "best.yaml", "plots", "trials.csv", "trials.jsonl", "tune.yaml"]
SPACE = ["train.learning_rate=log(1e-3, 1e-1)", "model.temperature=uniform(0.05, 0.3)"]


@pytest.fixture
def config(log_file):
    return load_config(overrides=[f"data.source=csv:{log_file}", *SMALL])


def read_rows(out):
    with (out / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Rigged:
    """Stands in for `train_run`: the metric is what a function says of configuration and epoch."""

    def __init__(self, curve):
        self.curve, self.configs, self.measured = curve, [], []

    def __call__(self, config, folder, *, data, callbacks):
        (folder.parent / f".{folder.name}.unfinished").mkdir()
        self.configs.append(config)
        self.measured.append(0)
        [watch] = callbacks
        watch.set_params({"epochs": config.train.epochs})
        for epoch in range(1, config.train.epochs + 1):
            value = self.curve(config, epoch)
            watch.on_train_batch_end(0, {"loss": 1.0})
            evaluated = epoch % config.evaluation.every_epochs == 0
            self.measured[-1] += evaluated
            watch.on_epoch_end(epoch - 1, {f"val_{METRIC}": value} if evaluated else {})
        return {"test": {METRIC: value}}


def peak(config, epoch):
    """Highest at a rate of 0.01 and a temperature of 0.1."""
    far = abs(math.log10(config.train.learning_rate) + 2)
    return epoch / 4 - far - abs(config.model.temperature - 0.1) / 0.1


@pytest.fixture
def rig(monkeypatch):
    gc.freeze()  # collected after each trial: what was there before is not looked through

    def put(curve):
        rigged = Rigged(curve)
        monkeypatch.setattr(driver, "train_run", rigged)
        # Some pictures are looked at below.
        monkeypatch.setattr(
            driver, "write_plots", lambda study, folder, **_: folder.mkdir(exist_ok=True)
        )
        return rigged

    yield put
    gc.unfreeze()


def tune(config, out, **changes):
    changes = {"space": SPACE, "metric": METRIC, "trials": 8, **changes}
    return run_tuning(config, changes.pop("space"), out, **changes)


# ------------------------------------------------------------------ the space


@pytest.mark.parametrize(
    ("rule", "low", "high", "log"),
    [
        ("train.learning_rate=log(1e-3, 1e-1)", 0.001, 0.1, True),
        (" model.temperature = uniform( .05,0.3 ) ", 0.05, 0.3, False),
        ("a.b=uniform(-1.5E0, +2)", -1.5, 2.0, False),
        ("task.recipe.num_uniform=int(256, 4096, log)", 256, 4096, True),
        ("train.epochs=int(2,12)", 2, 12, False),
        ("a.b.c_1=int(-3, 1e3)", -3, 1000, False),
    ],
)
def test_ranges(rule, low, high, log):
    [parameter] = parse_space([rule])
    drawn = parameter.distribution
    assert (parameter.key, drawn.low, drawn.high, drawn.log) == (
        rule.split("=")[0].strip(),
        low,
        high,
        log,
    )
    assert parameter.ends == [low, high]
    assert [type(end) for end in parameter.ends] == [type(low), type(high)]


def test_choices_are_values_in_yaml_and_come_back_as_they_are():
    rule = "model.x=one_of(in_batch, [128, 64], null, 1e-3, true, {a: b}, 'a, (b)', \"1\")"
    [parameter] = parse_space([rule])
    values = ["in_batch", [128, 64], None, 0.001, True, {"a": "b"}, "a, (b)", "1"]
    assert list(parameter.distribution.choices) == [
        *("in_batch", "[128, 64]", "null", "0.001", "true", '{"a": "b"}', "a, (b)", "1")
    ]
    for text, value in zip(parameter.ends, values, strict=True):
        key, _, written = parameter.override(text).partition("=")
        assert (key, parse_yaml(written)) == ("model.x", value)


@pytest.mark.parametrize(
    "rule",
    [
        "train.learning_rate",
        "train.learning_rate=0.1",
        "learning_rate=log(1e-3, 1e-1)",
        "train.learning_rate=normal(0, 1)",
        "train.learning_rate=log(1e-3)",
        "train.learning_rate=log(1e-3, 1e-2, 1e-1)",
        "train.learning_rate=log(1e-3, 1e-1",
        "train.learning_rate=log(1e-3, 1e-1, log)",
        "train.learning_rate=log(low, high)",
        "train.learning_rate=log(__import__('os'), 1)",
        "train.epochs=int(1, 5, exp)",
        "train.epochs=int(1, 5) + 1",
        "",
    ],
)
def test_a_wrong_rule_is_one_sentence_with_an_example(rule):
    with pytest.raises(InputError, match=r"`space`: .*train\.learning_rate=log\(1e-3, 1e-1\)") as e:
        parse_space([rule])
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        (["a.b=uniform(0.3, 0.1)"], "`a.b`: expected finite bounds, the lower one first"),
        (["a.b=uniform(1, 1)"], "the lower one first"),
        (["a.b=log(0, 1)"], "above 0 for log"),
        (["a.b=int(0, 5, log)"], "above 0 for log"),
        (["a.b=uniform(1, 1e999)"], "finite bounds"),
        (["a.b=int(1.5, 3)"], "whole numbers"),
        (["a.b=one_of()"], "one_of with different values in YAML"),
        (["a.b=one_of(a, a)"], "different values"),
        (["a.b=one_of(null, 'null')"], "different values"),
        (["a.b=one_of([1, 2)"], "values in YAML"),
        (["a.b=one_of(2020-01-01)"], "values in YAML"),
        (["a.b=int(1, 2)", "a.b=int(1, 3)"], "several for a.b"),
        (["data.min_rating=int(1, 4)"], "Received: data.min_rating"),
        (["evaluation.ks=one_of([5], [10])"], "Received: evaluation.ks"),
        (["train.seed=int(0, 4)"], "Received: train.seed"),
        ([], "`space`: .*Received: none"),
    ],
)
def test_spaces_that_cannot_be_drawn_from(rules, says):
    with pytest.raises(InputError, match=says):
        parse_space(rules)


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ("train.learning_rat=log(1e-3, 1e-1)", "perhaps `train.learning_rate`"),
        ("trian.epochs=int(1, 2)", "perhaps `train`"),
        ("train.epochs=int(0, 5)", "`train.epochs`"),
        ("train.epochs=uniform(1, 5)", "`train.epochs`"),
        ("model.id_dropout=uniform(0, 1)", "`model.id_dropout`: expected less than 1"),
        ("task.recipe=one_of(in_batch, magic)", "`task.recipe`"),
        ("model.hidden=one_of([64], 64)", "`model.hidden`"),
    ],
)
def test_keys_and_values_are_checked_before_the_first_trial(config, rule, says, tmp_path):
    with pytest.raises(InputError, match=says) as error:
        check_space(config, parse_space([rule]))
    with pytest.raises(InputError) as as_run:
        tune(config, tmp_path / "out", space=[rule])
    assert str(as_run.value) == str(error.value)
    assert names(tmp_path) == []


def test_the_size_of_a_space():
    space = parse_space(["a.b=int(1, 3)", "a.c=one_of(x, [1])", "a.d=int(-4, 4)"])
    assert size_of(space) == 3 * 2 * 9
    assert size_of([*space, *parse_space(["a.d=uniform(0, 1)"])]) == math.inf


def test_a_space_addresses_arguments_of_parts(config):
    rules = [
        "task.negatives.uniform.num_negatives=int(3, 9)",
        "task.negatives.1.num_negatives=int(3, 9)",
        "task.negatives=one_of([in_batch], [in_batch, {uniform: {num_negatives: 5}}])",
        "task.recipe=one_of(in_batch, {mixed_negative_sampling: {num_uniform: 5}})",
        "task.frequency.method=one_of(interval, decayed_count)",
    ]
    base = config.with_overrides(["task.recipe=mixed_negative_sampling"])
    check_space(base, parse_space(rules))
    (parameter,) = parse_space(rules[:1])
    drawn = base.with_overrides([parameter.override(7)]).model_dump()["task"]["negatives"]
    assert drawn == ["in_batch", {"uniform": {"num_negatives": 7}}]
    with pytest.raises(InputError, match=r"`task.negatives\[1\].uniform.num_negatives`"):
        check_space(base, parse_space(["task.negatives.uniform.num_negatives=int(0, 9)"]))


# ------------------------------------------------------------------ the trials, on a rigged metric


def test_it_looks_where_it_was_good(config, rig, tmp_path):
    rigged, first, last = rig(peak), [], []
    for seed in range(2):
        rigged.configs.clear()
        best = tune(config, tmp_path / f"{seed}", trials=18, seed=seed)["best"]
        values = [peak(config, 2) for config in rigged.configs]
        first, last = [*first, *values[:5]], [*last, *values[12:]]
        assert best["value"] == max(values)
        assert rigged.configs[best["number"]].train.learning_rate == best["train.learning_rate"]
    # Over 25 seeds random draws have a mean of -0.8 early and late, the sampler of -0.25 late.
    assert np.mean(last) > np.mean(first) + 0.25


def test_all_trials_share_the_validation_part_and_the_seed_of_training(config, rig, tmp_path):
    rigged = rig(peak)
    tune(config, tmp_path / "out", trials=3)
    for trial in rigged.configs:
        assert trial.data.validation_fraction == 0.1
        assert trial.evaluation.every_epochs == 1
        assert trial.train.seed == config.train.seed
    chosen = config.with_overrides(["data.validation_fraction=0.3", "evaluation.every_epochs=2"])
    rigged.configs.clear()
    tune(chosen, tmp_path / "other", trials=1)
    assert rigged.configs[0].data.validation_fraction == 0.3
    assert rigged.configs[0].evaluation.every_epochs == 2


def test_best_yaml_is_the_best_trial_without_what_only_trials_need(config, rig, tmp_path):
    rigged = rig(lambda config, epoch: peak(config, epoch))
    space = [*SPACE, "model.hidden=one_of([8], [8, 4])", "model.output_dim=one_of(null, 4)"]
    asked = config.with_overrides(["evaluation.ks=[3]", "train.checkpoint_every_steps=7"])
    report = tune(asked, tmp_path / "out", space=space)
    best = load_config(tmp_path / "out" / "best.yaml")
    trained = rigged.configs[report["best"]["number"]]
    assert (best.train.learning_rate, best.model) == (trained.train.learning_rate, trained.model)
    assert best.model.temperature == report["best"]["model.temperature"]
    # All else as it was asked for, and the length of list that the metric needs.
    back = {"temperature": 0.1, "hidden": [8], "output_dim": 4}
    model = best.model.model_copy(update=back)
    train = best.train.model_copy(update={"learning_rate": asked.train.learning_rate})
    unchanged = best.model_copy(update={"model": model, "train": train})
    wanted = asked.with_absolute_paths().with_overrides(["evaluation.ks=[3, 5]"])
    assert unchanged.model_dump() == wanted.model_dump()
    assert best.data.validation_fraction is None


def test_the_table_says_what_became_of_each_trial(config, rig, tmp_path):
    # The second epoch of four is the best; the last one decides.
    curve = {1: 0.2, 2: 0.5, 3: 0.4, 4: 0.3}
    rig(lambda config, epoch: curve[epoch] + config.model.temperature / 1000)
    four = config.with_overrides(["train.epochs=4"])
    report = tune(four, tmp_path / "out", trials=3)
    rows = read_rows(tmp_path / "out")
    assert [row["number"] for row in rows] == ["0", "1", "2"]
    for row, record in zip(rows, report["trials"], strict=True):
        temperature = float(row["model.temperature"])
        assert float(row["value"]) == curve[4] + temperature / 1000
        assert (row["state"], row["best_epoch"], row["epochs"]) == ("complete", "2", "4")
        assert 0.05 <= temperature <= 0.3
        assert 0 <= float(row["seconds"]) < 60
        assert float(row["train.learning_rate"]) == record["train.learning_rate"]
    assert report["best"]["number"] == max(
        range(3), key=lambda n: float(rows[n]["model.temperature"])
    )


def test_the_last_epoch_counts_also_where_it_was_not_evaluated_on_the_way(config, rig, tmp_path):
    rig(lambda config, epoch: epoch / 10)
    odd = config.with_overrides(["train.epochs=5", "evaluation.every_epochs=2"])
    best = tune(odd, tmp_path / "out", trials=1)["best"]
    assert (best["value"], best["best_epoch"], best["epochs"]) == (0.5, 5, 5)


# ------------------------------------------------------------------ going on


def test_after_an_exception_it_goes_on_and_repeats_nothing(config, rig, tmp_path, caplog):
    out = tmp_path / "out"

    def broken(config, epoch):
        if len(rigged.configs) == 4:
            raise RuntimeError("out of memory")
        return peak(config, epoch)

    rigged = rig(broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        tune(config, out)
    assert "3 trials are done; the same command goes on." in caplog.text
    assert not [name for name in names(out) if "trial" in name and "trials" not in name]
    before = rigged.configs
    assert len(before) == 4
    rigged = rig(peak)
    report = tune(config, out)
    # The one that failed is not counted and not tried again.
    assert [row["state"] for row in report["trials"]].count("failed") == 1
    assert report["trials"][3]["reason"] == "out of memory"
    assert len(report["trials"]) == 9
    assert len(rigged.configs) == 5
    rates = [row["train.learning_rate"] for row in report["trials"]]
    assert rates[:4] == [c.train.learning_rate for c in before]
    assert len(set(rates)) == 9
    # Nothing is left to do, and more can be asked for.
    assert tune(config, out) == report
    assert len(tune(config, out, trials=10)["trials"]) == 11
    assert len(rigged.configs) == 7


def test_what_a_kill_leaves_is_cleared_away(config, rig, tmp_path):
    out = tmp_path / "out"
    rigged = rig(peak)
    tune(config, out, trials=2)
    # The state of a process that is killed in its third trial, while it writes.
    open_study(out / "trials.jsonl").ask()
    (out / ".trial.unfinished").mkdir()
    os.symlink("trials.jsonl", out / "trials.jsonl.lock")
    with (out / "trials.jsonl").open("a") as file:
        file.write('{"op_code":7,"wor')
    report = tune(config, out, trials=4)
    states = [row["state"] for row in report["trials"]]
    assert states == ["complete", "complete", "interrupted", "complete", "complete"]
    assert report["trials"][2]["seconds"] is None
    assert names(out) == FILES
    assert len(rigged.configs) == 4


def test_draws_do_not_depend_on_how_often_it_was_begun(config, rig, tmp_path):
    rigged = rig(peak)
    tune(config, tmp_path / "once", trials=6)
    once = [c.train.learning_rate for c in rigged.configs]
    rigged.configs.clear()
    for trials in (1, 6):
        tune(config, tmp_path / "often", trials=trials)
    assert [c.train.learning_rate for c in rigged.configs] == once
    rigged.configs.clear()
    tune(config, tmp_path / "seed", trials=6, seed=1)
    assert not {c.train.learning_rate for c in rigged.configs} & set(once)


def test_other_trials_do_not_go_on_in_the_folder(config, rig, tmp_path):
    rig(peak)
    out = tmp_path / "out"
    tune(config, out, trials=1)
    before = contents(out)
    other = config.with_overrides(["train.epochs=3"])
    wider = [SPACE[0], "model.temperature=uniform(0.05, 0.4)"]
    for changed, changes, says in (
        (config, {"space": SPACE[:1]}, "space.model.temperature None for uniform"),
        (config, {"space": wider}, r"uniform\(0.05, 0.4\) for"),
        (config, {"metric": "ndcg_at_5"}, "metric ndcg_at_5 for recall_at_5"),
        (config, {"seed": 3}, "seed 3 for 0"),
        (other, {}, "config.train.epochs 3 for 2"),
    ):
        with pytest.raises(InputError, match=f"`out`: .*{says}"):
            tune(changed, out, **changes)
        assert contents(out) == before
    # The same space in other words is the same.
    other_words = ["train.learning_rate=log(0.001,0.1)", SPACE[1]]
    assert len(tune(config, out, trials=1, space=other_words)["trials"]) == 1


def test_a_folder_with_something_else_is_left_alone(config, tmp_path):
    (tmp_path / "notes.txt").write_text("keep me")
    with pytest.raises(InputError, match=r"`out`: expected a new folder, or one with tune\.yaml"):
        tune(config, tmp_path)
    assert names(tmp_path) == ["notes.txt"]


def test_two_processes_do_not_work_in_one_folder(tmp_path):
    again = open_folder(tmp_path / "out", {"seed": 0})
    with (
        open_folder(tmp_path / "out", {"seed": 0}),
        pytest.raises(InputError, match="no other process"),
        again,
    ):
        pass
    with open_folder(tmp_path / "out", {"seed": 0}):
        pass


def test_a_small_space_is_tried_once_each_whatever_was_interrupted(config, rig, tmp_path):
    space = ["train.epochs=int(1, 3)", "model.item_bias=one_of(true, false)"]

    def interrupted(config, epoch):
        if len(rigged.configs) == 3:
            raise KeyboardInterrupt
        return epoch / 10

    rigged = rig(interrupted)
    with pytest.raises(KeyboardInterrupt):
        tune(config, tmp_path / "out", space=space, trials=20)
    rig(lambda config, epoch: epoch / 10)
    report = tune(config, tmp_path / "out", space=space, trials=20)
    done = [
        (row["train.epochs"], row["model.item_bias"])
        for row in report["trials"]
        if row["state"] == "complete"
    ]
    assert sorted(done) == [(n, bias) for n in (1, 2, 3) for bias in ("false", "true")]
    assert [row["state"] for row in report["trials"]].count("interrupted") == 1


# ------------------------------------------------------------------ early ends


def test_what_falls_behind_the_median_is_stopped_but_no_early_trial(config, rig, tmp_path):
    def curve(config, epoch):
        number = len(rigged.configs)
        if number in (6, 7):
            return 0.1  # below the others from the beginning
        return 0.5 + number / 100 + 0.42 * (epoch == 4)

    rigged = rig(curve)
    four = config.with_overrides(["train.epochs=4"])
    report = tune(four, tmp_path / "out", trials=8)
    assert rigged.measured == [4, 4, 4, 4, 4, 2, 2, 4]
    states = [row["state"] for row in report["trials"]]
    assert states == ["complete"] * 5 + ["pruned"] * 2 + ["complete"]
    stopped = report["trials"][5]
    assert (stopped["reason"], stopped["epochs"]) == ("Trial was pruned at epoch 2.", 2)
    assert report["best"]["value"] == 0.5 + 8 / 100 + 0.42


def test_what_is_not_a_number_is_never_the_best(config, rig, tmp_path):
    def curve(config, epoch):
        return math.nan if len(rigged.configs) == 2 else 0.3

    rigged = rig(curve)
    report = tune(config, tmp_path / "out", trials=3)
    assert [row["state"] for row in report["trials"]] == ["complete", "pruned", "complete"]
    assert report["trials"][1]["reason"] == "recall_at_5 is nan"
    assert report["trials"][1]["value"] is None
    assert report["best"]["number"] != 1


def test_where_training_never_ends_well_it_says_so(config, rig, tmp_path):
    rig(lambda config, epoch: math.nan)
    with pytest.raises(InputError, match=r"training ends well.*recall_at_5 is nan"):
        tune(config, tmp_path / "out", trials=2)
    assert names(tmp_path / "out") == [".lock", "trials.csv", "trials.jsonl", "tune.yaml"]


def refuse(every):
    def curve(config, epoch):
        if every(config):
            raise InputError("`task.recipe.capacity`: expected at least a batch. Received: 5")
        return 0.3

    return curve


def test_settings_that_do_not_work_are_passed_over(config, rig, tmp_path):
    rigged = rig(refuse(lambda config: config.model.temperature > 0.175))
    report = tune(config, tmp_path / "out", trials=6)
    failed = [row for row in report["trials"] if row["state"] == "failed"]
    assert {row["reason"] for row in failed} == {
        "`task.recipe.capacity`: expected at least a batch. Received: 5"
    }
    assert 0 < len(failed) == len(rigged.configs) - 6
    rows = read_rows(tmp_path / "out")
    assert [row["reason"] for row in rows if row["state"] == "failed"] == [
        row["reason"] for row in failed
    ]
    assert all(float(row["model.temperature"]) > 0.175 for row in rows if row["state"] == "failed")


def test_after_three_failures_and_nothing_else_it_ends_with_the_sentence(config, rig, tmp_path):
    rigged = rig(refuse(lambda config: True))
    for _ in range(2):
        with pytest.raises(InputError, match=r"^`task.recipe.capacity`: expected at least a batch"):
            tune(config, tmp_path / "out")
    assert len(rigged.configs) == 3


def test_more_failures_than_trials_asked_for_are_enough(config, rig, tmp_path):
    rigged = rig(refuse(lambda config: len(rigged.configs) > 1))
    report = tune(config, tmp_path / "out", trials=4)
    assert [row["state"] for row in report["trials"]] == ["complete"] + ["failed"] * 4


# ------------------------------------------------------------------ arguments


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"metric": "recall"}, "`metric`: expected a metric and a length of list"),
        ({"metric": "recal_at_5"}, "`metric`: expected one of recall_at_5, .*Received: recal_at_5"),
        ({"metric": "recall_at_31"}, "`ks`"),
        ({"trials": 0}, "`trials`: expected at least 1"),
        ({"seed": -1}, "`seed`: expected at least 0"),
    ],
)
def test_wrong_arguments_leave_nothing(config, tmp_path, changes, says):
    with pytest.raises(InputError, match=says):
        tune(config, tmp_path / "out", **changes)
    assert names(tmp_path) == []


# ------------------------------------------------------------------ the picture


def test_pictures_are_drawn_and_leave_the_style_of_others_alone(config, rig, tmp_path, monkeypatch):
    write_plots = driver.write_plots
    rig(peak)
    monkeypatch.setattr(driver, "write_plots", write_plots)
    before = dict(matplotlib.rcParams)
    space = [*SPACE, "model.hidden=one_of([8], [8, 4])"]
    tune(config, tmp_path / "out", space=space, trials=6)
    plots = tmp_path / "out" / "plots"
    assert names(plots) == ["epochs.png", "history.png", "parameters.png"]
    for path in plots.iterdir():
        pixels = image.imread(path)[..., :3].reshape(-1, 3)
        assert len(np.unique(pixels, axis=0)) > 10
    assert dict(matplotlib.rcParams) == before
    assert plt.get_fignums() == []


# ------------------------------------------------------------------ in earnest


@pytest.fixture
def source(log_file):
    return f"data.source=csv:{log_file}"


@pytest.mark.slow
def test_the_command_tunes_on_the_validation_part_only(
    call, source, config, tmp_path, monkeypatch, caplog
):
    caplog.set_level("INFO", "tfrs_negatives")
    hidden = set(load_data(config).test.timestamps.tolist())
    met = set()

    def spy(name):
        method = getattr(Interactions, name)

        def use(self, *args, **kwargs):
            met.update(self.timestamps.tolist())
            return method(self, *args, **kwargs)

        monkeypatch.setattr(Interactions, name, use)

    def spied_load(config):
        data = load_data(config)
        for name in ("queries", "item_rows", "item_counts", "gather_rows", "stream"):
            spy(name)
        return data

    monkeypatch.setattr(driver, "load_data", spied_load)
    out = tmp_path / "out"
    rules = ["train.learning_rate=log(1e-3, 1e-1)", "task.correct=one_of(both, null)"]
    options = ["--space", rules[0], "--space", rules[1], "--metric", METRIC, "--out", out]
    options += ["--validation-fraction", "0.2", "--trials", "2", source, *SMALL]
    code, printed, err = call("tune", *options)
    assert code == 0, err
    assert len(met) == 320
    assert not met & hidden
    assert "csv:events.csv, validation: 2 trials, the best first" in printed
    assert f"wrote {out}/best.yaml" in printed
    assert names(out) == FILES
    lines = [m for m in caplog.messages if m.startswith("trial ")]
    assert [line.split("; ")[2] for line in lines] == ["1 of 2 done", "2 of 2 done"]
    # One line for each trial: not what a training says of itself.
    assert [m for m in caplog.messages if "first step" in m or "--resume" in m] == []
    code, printed, err = call("tune", *options, "--json")
    assert code == 0, err
    report = json.loads(printed)
    assert report["wrote"] == f"{out}/best.yaml"
    # What was measured is what training with these settings gives.
    best = load_config(out / "best.yaml", ["data.validation_fraction=0.2"])
    metrics = train_run(best, tmp_path / "again")
    assert metrics["test"][METRIC] == report["best"]["value"]
    assert report["data"] == metrics["data"] == "csv:events.csv, validation"


def test_a_trial_that_is_stopped_or_diverges_leaves_no_run(config, tmp_path, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        patch.setattr(optuna.Trial, "should_prune", lambda trial: True)
        with pytest.raises(InputError, match="pruned at epoch 1"):
            tune(config, tmp_path / "out", trials=1)
    assert names(tmp_path / "out") == [".lock", "trials.csv", "trials.jsonl", "tune.yaml"]
    wild = ["train.learning_rate=log(1e37, 1e38)", "train.optimizer=one_of(adagrad)"]
    with pytest.raises(InputError, match="the loss is nan"):
        tune(config, tmp_path / "wild", space=wild, trials=1)
    assert names(tmp_path / "wild") == [".lock", "trials.csv", "trials.jsonl", "tune.yaml"]
    assert "--resume" not in caplog.text


def test_a_wrong_space_is_one_sentence_on_the_terminal(call, source, tmp_path):
    for rule, says in (
        ("train.learning_rate=log(1e-3", "expected a rule such as"),
        ("train.learning_rat=log(1e-3, 1e-1)", "perhaps `train.learning_rate`"),
    ):
        code, _, err = call("tune", "--space", rule, "--out", tmp_path / "out", source, *SMALL)
        assert code == 2
        assert says in err.splitlines()[-1]
    assert names(tmp_path) == []


def test_without_optuna_it_says_what_to_install(call, monkeypatch):
    for name in [n for n in sys.modules if n.startswith("tfrs_negatives.tune")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "optuna", None)
    code, _, err = call("tune", "--space", SPACE[0])
    assert code == 2
    assert "pip install 'tfrs-negatives[compare]'" in err.splitlines()[-1]
