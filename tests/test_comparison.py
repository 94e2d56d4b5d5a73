"""Several variants with several seeds: their runs, what interrupts them, and their report."""

from __future__ import annotations

import base64
import csv
import json
import math
import shutil
import sys
import warnings
from html.parser import HTMLParser

import numpy as np
import pyarrow.parquet as pq
import pytest

from tfrs_negatives.compare import compare, read_variants
from tfrs_negatives.compare.diagnostics import compare_log_q
from tfrs_negatives.compare.plots import COLOURS, draw_plots, style_of
from tfrs_negatives.compare.report import render
from tfrs_negatives.runs.folder import unfinished_of
from tfrs_negatives.runs.progress import EpochProgress
from tfrs_negatives.runs.train import load_data, load_run

# ------------------------------------------------------------------ runs

SETTINGS = """
data: {{source: "csv:{source}", columns: {{user: {role}, age: query, item: item_id,
  time: time}}}}
model: {{embedding_dim: 4, hidden: [8], output_dim: 4, id_dropout: 0.2}}
task: {{recipe: in_batch, correct: {correct}}}
train: {{batch_size: 64, checkpoint_every_steps: 2}}
evaluation: {{ks: [5, 3]}}
index: {{ks: [3]}}
"""
COMMON = ["--set", "train.epochs=2", "--seeds", "2", "--metric", "recall_at_5"]
# 320 training events in batches of 64: epochs of 5 steps.


@pytest.fixture(scope="module")
def configs(log_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("configs")
    for name, correct in [("<b>", "both"), ("plain", "null")]:
        own = {"correct": correct, "role": "query_id"}
        (folder / f"{name}.yaml").write_text(SETTINGS.format(source=log_file, **own))
    return [folder / "<b>.yaml", folder / "plain.yaml"]


@pytest.fixture(scope="module")
def complete(configs, tmp_path_factory):
    """A comparison of two variants and two seeds that nothing has interrupted."""
    folder = tmp_path_factory.mktemp("complete")
    variants = read_variants(configs, overrides=["train.epochs=2"])
    compare(variants, folder=folder, seeds=2, metric="recall_at_5")
    return folder


@pytest.fixture(scope="module")
def results(complete):
    return json.loads((complete / "results.json").read_text())


def run_of(folder, variant, seed):
    return folder / "runs" / {"<b>": "b", "plain": "plain"}[variant] / f"seed_{seed}"


def test_nothing_but_the_comparison_is_written(complete):
    assert sorted(p.name for p in complete.iterdir()) == [
        "plots",
        "report.html",
        "results.json",
        "runs",
    ]


def items_by_user(part):
    found = {}
    for user, item in zip(
        part.query_features["user"].tolist(), part.item_ids.tolist(), strict=True
    ):
        found.setdefault(user, set()).add(item)
    return found


def test_what_was_found_for_each_query_is_in_the_run(complete):
    run = run_of(complete, "<b>", 1)
    table = pq.read_table(run / "per_query.parquet")
    assert table.column_names == [
        "user",
        *(f"{name}_at_{k}" for k in (3, 5) for name in ("recall", "ndcg")),
    ]
    metrics = json.loads((run / "metrics.json").read_text())["test"]
    for name in table.column_names[1:]:
        assert np.mean(table[name].to_numpy()) == pytest.approx(metrics[name], rel=1e-5)
    config, model = load_run(run)
    data = load_data(config)
    users = table["user"].to_pylist()
    # All who have something in the test that is not in their training; the others are skipped.
    seen, wanted = (items_by_user(part) for part in (data.train, data.test))
    assert users == sorted(u for u, items in wanted.items() if items - seen.get(u, set()))
    assert len(users) < len(wanted)
    # One user, by hand: rank what is not seen in training.
    user = users[4]
    seen, wanted = seen[user], wanted[user]
    row = np.flatnonzero(data.test.query_features["user"] == user)[:1]
    features = {name: column[row] for name, column in data.test.query_features.items()}
    query = model.query_vectors(features).numpy()[0]
    items = model.item_vectors(next(model.items.batches(100))).numpy() @ query
    ranked = [i for i in data.items.ids[np.argsort(-items)].tolist() if i not in seen]
    wanted -= seen
    hits = len(wanted & set(ranked[:5]))
    assert table["recall_at_5"][4].as_py() == pytest.approx(hits / len(wanted))


def values(complete, variant, name):
    runs = [json.loads((run_of(complete, variant, s) / "metrics.json").read_text()) for s in (0, 1)]
    return [run["test"][name] for run in runs]


@pytest.mark.parametrize("variant", [0, 1])
def test_the_results_are_what_the_runs_say(complete, results, variant):
    record = results["variants"][variant]
    name = ("<b>", "plain")[variant]
    assert record["name"] == name
    for metric in ("recall_at_5", "ndcg_at_3", "coverage_at_3", "mean_popularity_at_5"):
        one, two = values(complete, name, metric)
        found = record["metrics"][metric]
        assert found["values"] == [one, two]
        assert found["mean"] == pytest.approx((one + two) / 2)
        # The standard deviation of two numbers is their distance over the root of 2.
        assert found["std"] == pytest.approx(abs(one - two) / math.sqrt(2))
    for seed in (0, 1):
        lines = list(csv.DictReader((run_of(complete, name, seed) / "history.csv").open()))
        for line, point in zip(lines, record["curve"], strict=True):
            assert point["epoch"] == int(line["epoch"])
            assert point["values"][seed] == pytest.approx(float(line["val_recall_at_5"]))
    assert record["curve"][-1]["values"] == pytest.approx(values(complete, name, "recall_at_5"))


def test_the_comparison_is_what_the_queries_say(complete, results):
    by_user = {}
    for seed in (0, 1):
        tables = [
            pq.read_table(run_of(complete, name, seed) / "per_query.parquet").to_pydict()
            for name in ("plain", "<b>")
        ]
        for user, ours, theirs in zip(
            tables[0]["user"], *(table["recall_at_5"] for table in tables), strict=True
        ):
            by_user.setdefault(user, []).append(ours - theirs)
    wanted = np.mean([np.mean(differences) for differences in by_user.values()])
    (comparison,) = results["comparisons"]
    sign = 1 if comparison["first"] == "plain" else -1
    assert {comparison["first"], comparison["second"]} == {"<b>", "plain"}
    assert comparison["first"] == results["recommendation"]["best"]
    assert sign * comparison["mean_difference"] == pytest.approx(wanted, rel=1e-5)
    assert comparison["num_users"] == len(by_user)
    assert comparison["p_holm"] == comparison["p"]


def test_facts_and_settings(results):
    data = results["data"]
    assert (data["training_events"], data["test_events"]) == (320, 80)
    assert (data["queries"], data["items"]) == (20, 30)
    assert sum(b["items"] for b in data["popularity"]) == 30
    assert sum(b["events"] for b in data["popularity"]) == pytest.approx(1)
    assert (results["metric"], results["k"], results["ks"]) == ("recall_at_5", 5, [3, 5])
    assert (results["seeds"], results["baseline"]) == ([0, 1], "<b>")
    settings = [variant["settings"] for variant in results["variants"]]
    assert list(settings[0]) == ["task.frequency", "task.masks", "task.correct"]
    assert settings[1] == {
        "task.frequency": None,
        "task.masks": [{"accidental_hits": {"more_positives": None}}],
        "task.correct": None,
    }
    assert [r["name"] for r in results["references"]] == ["most popular", "random"]


def test_estimates_are_compared_where_there_are_any(complete, results):
    run = run_of(complete, "<b>", 0)
    table = pq.read_table(run / "items.parquet").to_pydict()
    counts = np.array(table["training_events"])
    found = results["variants"][0]["diagnostics"]["log_q"]
    wanted = np.log(counts[counts > 0] / 320)
    np.testing.assert_allclose(found["exact"], wanted, atol=1e-4)
    # Two epochs of a log of 30 items: the table has room for all.
    np.testing.assert_allclose(found["estimated"], wanted, atol=0.01)
    error = np.abs(np.array(found["estimated"]) - found["exact"]).mean()
    assert found["mean_error"] == pytest.approx(error, abs=1e-4)
    assert results["variants"][1]["diagnostics"]["log_q"] is None
    config, model = load_run(run_of(complete, "plain", 0))
    assert compare_log_q(model, load_data(config)) is None
    kept = json.loads((run / "diagnostics.json").read_text())
    assert kept == results["variants"][0]["diagnostics"]
    assert not (run_of(complete, "<b>", 1) / "diagnostics.json").exists()


# ------------------------------------------------------------------ interruption


def without_clocks(results):
    """Results without what no two calls agree in."""
    variants = [{**v, "seconds_per_epoch": None} for v in results["variants"]]
    return {**results, "date": None, "variants": variants}


@pytest.fixture
def trained(monkeypatch):
    """What is trained: labels and the steps done before; and a place to say when to fail."""
    labels, begun, fail = [], [], {}
    begin, advance = EpochProgress.on_train_begin, EpochProgress.on_train_batch_end

    def note(self, logs=None):
        labels.append(self.label)
        begun.append(int(self.model.optimizer.iterations))
        begin(self, logs)

    def maybe_fail(self, batch, logs=None):
        if fail.get(self.label) == int(self.model.optimizer.iterations):
            self._bar.stop()
            raise KeyboardInterrupt
        advance(self, batch, logs)

    monkeypatch.setattr(EpochProgress, "on_train_begin", note)
    monkeypatch.setattr(EpochProgress, "on_train_batch_end", maybe_fail)
    # The plots have tests of their own.
    monkeypatch.setattr("tfrs_negatives.compare.report.draw_plots", lambda results: {})
    return labels, begun, fail


@pytest.mark.slow
def test_an_interrupted_comparison_goes_on(call, configs, complete, results, tmp_path, trained):
    labels, begun, fail = trained
    for name, seed in (("<b>", 0), ("plain", 0), ("plain", 1)):
        shutil.copytree(run_of(complete, name, seed), run_of(tmp_path, name, seed))
    arguments = ["compare", *configs, *COMMON, "--out", tmp_path]
    fail["<b>  seed 1  (3/4)"] = 8
    code, _, err = call(*arguments)
    assert code not in (0, 2), err
    assert labels == ["<b>  seed 1  (3/4)"]
    assert unfinished_of(run_of(tmp_path, "<b>", 1)).is_dir()
    assert not (tmp_path / "report.html").exists()

    labels.clear()
    fail.clear()
    code, out, err = call(*arguments, "--json")
    assert code == 0, err
    assert labels == ["<b>  seed 1  (3/4)"]
    assert begun == [0, 7]  # the second one at the checkpoint
    assert without_clocks(json.loads((tmp_path / "results.json").read_text())) == without_clocks(
        results
    )
    answer = json.loads(out)
    assert answer["best"] == results["recommendation"]["best"]
    assert [row["variant"] for row in answer["table"]] == ["most popular", "random", "<b>", "plain"]
    for row, record in zip(answer["table"][2:], results["variants"], strict=True):
        assert row["recall_at_5"] == record["metrics"]["recall_at_5"]["mean"]

    # Once more: nothing is left to train, and the same is said to a person.
    labels.clear()
    (tmp_path / "results.json").unlink()
    code, out, err = call(*arguments, "--baseline", "plain", "--overwrite")
    assert code == 0, err
    assert labels == []
    again = json.loads((tmp_path / "results.json").read_text())
    assert again["baseline"] == "plain"
    assert without_clocks(again)["variants"] == without_clocks(results)["variants"]
    assert "report.html" in out
    assert "most popular" in out


def test_a_run_of_another_configuration_is_kept_unless_told_otherwise(
    call, configs, complete, tmp_path, trained
):
    labels, _, _ = trained
    run = run_of(tmp_path, "<b>", 0)
    shutil.copytree(run_of(complete, "<b>", 0), run)
    before = json.loads((run / "metrics.json").read_text())
    arguments = ["compare", configs[0], *COMMON, "--seeds", "1", "--out", tmp_path]
    arguments += ["--set", "evaluation.every_epochs=2"]
    code, _, err = call(*arguments)
    assert (code, labels) == (2, [])
    assert "--overwrite" in err.splitlines()[-1]
    assert "evaluation.every_epochs=1 and not 2" in err.splitlines()[-1]
    assert json.loads((run / "metrics.json").read_text()) == before
    code, _, err = call(*arguments, "--overwrite")
    assert code == 0, err
    assert labels == ["<b>  seed 0  (1/1)"]
    results = json.loads((tmp_path / "results.json").read_text())
    assert [point["epoch"] for point in results["variants"][0]["curve"]] == [2]
    # How often is evaluated on the way changes nothing else.
    assert json.loads((run / "metrics.json").read_text())["test"] == before["test"]


# ------------------------------------------------------------------ the report


class Page(HTMLParser):
    """Text, images and attributes of a page; complains of tags that do not match."""

    EMPTY = frozenset({"meta", "img", "br", "link"})

    def __init__(self, page):
        super().__init__()
        self.open, self.words, self.images, self.links, self.tags = [], [], [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append(tag)
        if tag == "img":
            self.images.append(found)
        self.links += [found[name] for name in ("src", "href") if name in found]
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def page(complete):
    return Page((complete / "report.html").read_text(encoding="utf-8"))


def test_every_png_is_in_the_page_and_nothing_is_outside_of_it(complete, page):
    files = {path.read_bytes() for path in (complete / "plots").iterdir()}
    assert len(files) == 7
    embedded = [image["src"].partition("base64,") for image in page.images]
    assert {base64.b64decode(data) for _, _, data in embedded} == files
    assert {head for head, _, _ in embedded} == {"data:image/png;"}
    assert all(data.startswith(b"\x89PNG") for data in files)
    assert all(len(image["alt"]) > 20 for image in page.images)
    assert [link for link in page.links if not link.startswith("data:")] == []
    assert "script" not in page.tags


def test_names_are_text_and_not_html(complete, page):
    source = (complete / "report.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;" in source
    assert "<b><" not in source.replace("<b></", "<b><")
    for name in ("<b>", "plain"):
        # In each table of the three: two of quality and that of the settings.
        assert page.text.count(name) >= 3


def test_the_page_says_the_numbers(results, page):
    best = results["recommendation"]["best"]
    assert f"Choose {best}." in page.text
    for record in (*results["variants"], *results["references"]):
        found = record["metrics"]["recall_at_5"]
        assert f"{found['mean']:.4f} ± {found['std']:.4f}" in page.text
    (comparison,) = results["comparisons"]
    assert f"{comparison['mean_difference']:+.4f}" in page.text
    assert "Mean ± standard deviation over 2 seeds." in page.text


def test_without_key_with_one_variant_and_one_seed(log_file, tmp_path, monkeypatch):
    monkeypatch.setattr("tfrs_negatives.compare.plots.DPI", 50)
    text = SETTINGS.format(source=log_file, role="query", correct="both", frequency="interval")
    (tmp_path / "only.yaml").write_text(text)
    variants = read_variants([tmp_path / "only.yaml"], overrides=["train.epochs=1"])
    found = compare(variants, folder=tmp_path / "out", seeds=1)
    assert found == json.loads((tmp_path / "out" / "results.json").read_text())
    assert (found["comparisons"], found["metric"]) == ([], "recall_at_3")
    assert found["recommendation"]["not_worse"] == []
    assert found["data"]["queries"] == 400
    record = found["variants"][0]
    assert record["metrics"]["recall_at_3"]["std"] is None
    scores = pq.read_table(tmp_path / "out" / "runs" / "only" / "seed_0" / "per_query.parquet")
    assert (len(scores), scores.column_names[0]) == (80, "recall_at_3")
    page = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert "One variant, so nothing to choose." in page.text
    assert len(page.images) == 7


def many(results, names, *, seeds):
    """The results as they would be with other names, and the first seeds only."""
    found = json.loads(json.dumps(results))

    def cut(value):
        if isinstance(value, list):
            return [cut(x) for x in value]
        if not isinstance(value, dict):
            return value
        kept = {name: cut(x) for name, x in value.items()}
        if "std" in kept and seeds == 1:
            kept |= {"std": None, "values": kept["values"][:1]}
        return kept

    variants = [{**found["variants"][i % 2], "name": name} for i, name in enumerate(names)]
    recommendation = {"best": names[-1], "not_worse": list(names[:-1]), "beats_popular": False}
    pairs = [{**found["comparisons"][0], "first": names[-1], "second": n} for n in names[:-1]]
    changed = {
        "variants": variants,
        "recommendation": recommendation,
        "comparisons": pairs,
        "baseline": names[0],
        "seeds": list(range(seeds)),
    }
    return cut({**found, **changed})


@pytest.mark.parametrize("seeds", [1, 2])
@pytest.mark.parametrize("num_variants", [1, 12])
def test_it_looks_right_at_other_sizes(results, monkeypatch, num_variants, seeds):
    monkeypatch.setattr("tfrs_negatives.compare.plots.DPI", 50)
    odd = ["_hidden", "a $5 b $6", "most popular", "x" * 70, "<script>alert(1)</script>"]
    names = [*odd, *(f"long_name_of_a_file, temperature=0.{i}, k=1" for i in range(7))]
    found = many(results, names[:num_variants], seeds=seeds)
    found["data"]["liked_popularity"]["mean"] = 5_000.0  # to the right of all points
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as of a layout that does not fit
        plots = draw_plots(found) if seeds == 1 else {}
    page = Page(render(found, plots))
    assert ("±" in page.text.replace("with the ± in the table", "")) == (seeds > 1)
    assert ("Is the difference real?" in page.text) == (num_variants > 1)
    assert "script" not in page.tags
    for name in names[:num_variants]:
        assert name in page.text
    assert "most popular items finds as much or more" in page.text


def test_looks_differ():
    assert len({style_of(number) for number in range(28)}) == 28
    assert [style_of(number).colour for number in range(7)] == list(COLOURS)


# ------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--seeds", "0"], "`seeds`"),
        (["--baseline", "nobody"], "`baseline`"),
        (["--metric", "recall_at_7"], "`metric`"),
        (["--metric", "coverage_at_5"], "`metric`"),
        (["--grid", "train.epochs=1,1"], "each value once"),
        (["--set", "train.epoch=1"], "perhaps `train.epochs`"),
        (["--set", "task.correct=null"], "that of <b>"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_written(call, configs, tmp_path, arguments, says):
    code, printed, err = call("compare", *configs, "--out", tmp_path / "out", *arguments)
    assert code == 2, err
    assert says in err.splitlines()[-1]
    assert printed == ""
    assert not (tmp_path / "out").exists()


def test_a_library_that_is_missing_is_named_before_any_training(
    call, configs, tmp_path, monkeypatch
):
    for name in [n for n in sys.modules if n.startswith("tfrs_negatives.compare")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    code, _, err = call("compare", *configs, "--out", tmp_path / "out")
    assert code == 2
    assert "pip install 'tfrs-negatives[compare]'" in err.splitlines()[-1]
    assert "jinja2" in err.splitlines()[-1]
    assert not (tmp_path / "out").exists()
