"""Extreme classification: the text format, and the metrics that its tables use."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import numpy as np
import pytest
from evaluation_cases import from_scores, log
from reference_metrics import ranked_list
from reference_xmc import inverse_propensity, psp, read_file

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.data import load
from tfrs_negatives.data.schema import Column
from tfrs_negatives.data.sources import xmc
from tfrs_negatives.evaluation import evaluate, inverse_propensities
from tfrs_negatives.runs.config import load_config
from tfrs_negatives.towers.build import build_tower
from tfrs_negatives.towers.features import infer_features

SHARED = Path(__file__).parents[2] / "shared" / "data" / "xmc"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is absent")

# Point 1 has no label, point 3 no word; word 4 of point 2 has the value 0.
TRAIN = "4 5 3\n0,2 1:2 3:0.5\n 0:1\n2 3:1 4:0 0:3\n1\n"
TEST = "2 5 3\n1 3:1\n0,1 0:1 4:2.5\n"
WORDS = "zero\none\ntwo\nthrée\nfour\n"
LABELS = "acid-base\n.NET\n??\n"


def write(folder, **changed):
    files = {"train": TRAIN, "test": TEST, "words": WORDS, "labels": LABELS, **changed}
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        if text is not None:
            (folder / f"{name}.txt").write_bytes(text.encode() if isinstance(text, str) else text)
    return f"xmc:{folder}"


def encoded(kind):
    return {"words": Column("query", encoding=kind)}


def test_points_are_queries_and_labels_items(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "tfrs_negatives"):
        data = load(write(tmp_path / "tiny"))
    assert data.name == "xmc:tiny"
    assert data.train.query_key == "point_id"
    assert data.train.query_features["point_id"].tolist() == [0, 0, 2, 3]
    assert data.train.item_ids.tolist() == [0, 2, 2, 1]
    assert data.test.query_features["point_id"].tolist() == [4, 5, 5]
    assert data.test.item_ids.tolist() == [1, 0, 1]
    assert data.items.ids.tolist() == [0, 1, 2]
    assert data.titles.tolist() == ["acid-base", ".NET", "??"]
    of_labels = data.items.features["label_words"].tolist()
    assert of_labels == [["acid", "base"], ["net", ""], ["", ""]]
    assert caplog.messages == ["1 of 6 points have no label: skipped"]


def test_the_words_of_a_point_as_texts(tmp_path):
    data = load(write(tmp_path))
    words = data.train.query_features["words"].tolist()
    assert words == [["one", "thrée"], ["one", "thrée"], ["thrée", "zero"], ["", ""]]
    assert data.test.query_features["words"].tolist()[1] == ["zero", "four"]
    specs = {spec.name: spec for spec in infer_features(data.train)}
    # No tower reads which point it is: the points of the test part are others.
    assert list(specs) == ["words"]
    assert (specs["words"].kind, specs["words"].vocabulary) == ("list", ("one", "thrée", "zero"))


def test_the_words_of_a_point_as_flags(tmp_path):
    flags = load(write(tmp_path), columns=encoded("multi_hot")).train.query_features["words"]
    assert flags.dtype == np.int8
    assert flags.tolist() == [[0, 1, 0, 1, 0], [0, 1, 0, 1, 0], [1, 0, 0, 1, 0], [0, 0, 0, 0, 0]]


def test_the_words_of_a_point_as_weights(tmp_path):
    data = load(write(tmp_path), columns=encoded("numeric"))
    weights = data.train.query_features["words"]
    # Of 4 training points, 2 have words 0 and 3 each, 1 has word 1; none has 2, and 4 only in test.
    one, three = 2 * math.log(4), 0.5 * math.log(2)
    first = np.array([0, one, 0, three, 0]) / math.hypot(one, three)
    np.testing.assert_allclose(weights[0], first, rtol=1e-6)
    zero, four = math.log(2), 2.5 * math.log(4)
    last = np.array([zero, 0, 0, 0, four]) / math.hypot(zero, four)
    np.testing.assert_allclose(data.test.query_features["words"][2], last, rtol=1e-6)
    assert weights[3].tolist() == [0] * 5


def test_large_words_become_flags_or_are_refused(tmp_path, monkeypatch, caplog):
    source = write(tmp_path)
    monkeypatch.setattr(xmc, "TEXT_BYTES", 100)
    with caplog.at_level(logging.INFO, "tfrs_negatives"):
        data = load(source)
    assert data.train.query_features["words"].dtype == np.int8
    assert "the words as texts take" in caplog.text
    assert infer_features(data.train)[0].kind == "multi_hot"
    # What is declared is done.
    assert load(source, columns=encoded("list")).train.query_features["words"].dtype.kind == "U"
    monkeypatch.setattr(xmc, "MAX_BYTES", 30)
    with pytest.raises(InputError, match=r"`columns\.words`: .*list 0 MB, multi_hot 0 MB"):
        load(source)


def test_a_single_file_is_cut_as_asked(tmp_path):
    source = write(tmp_path, train=None, test=None, all=TRAIN)
    data = load(source, split="by_user", test_fraction=0.3)
    assert len(data.train) + len(data.test) == 4
    points = [set(part.query_features["point_id"].tolist()) for part in (data.train, data.test)]
    assert not points[0] & points[1]
    with pytest.raises(InputError, match="`split`: expected one of"):
        load(source, split="as_given")


def test_without_texts_words_are_numbers_and_labels_have_none(tmp_path):
    data = load(write(tmp_path, words=None, labels=None))
    assert data.train.query_features["words"].tolist()[0] == ["1", "3"]
    assert list(data.items.features) == ["label_id"]
    assert data.titles is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train": ""}, "`train.txt`: expected `points words labels` in line 1. Received: ''"),
        ({"train": "4 5\n"}, "`points words labels` in line 1"),
        ({"train": "4 -5 3\n"}, "`points words labels` in line 1"),
        ({"train": "0 5 3\n"}, "at least one point, word and label"),
        ({"train": "3 5 3\n0 1:1\n1 2:1\n"}, "expected 3 points.* Received: 2"),
        ({"train": "1 5 3\n0 1:1\n\n1 2:1\n"}, "expected 1 points.* Received: more"),
        ({"train": "2 5 3\n0 1:1\n1 2\n"}, "in line 3, a space first.* Received: '1 2'"),
        ({"train": "2 5 3\n0:1 1:1\n1 2:1\n"}, "in line 2, a space first"),
        ({"train": "1 5 3\n0,,1 2:1\n"}, "in line 2"),
        ({"train": "1 5 3\nx 2:1\n"}, "in line 2"),
        ({"train": "1 5 3\n1.5 2:1\n"}, "in line 2"),
        ({"train": "1 5 3\n1 2:nan\n"}, "in line 2"),
        ({"train": "1 5 3\n1 2:1e400\n"}, "in line 2"),
        ({"train": "1 5 3\n1 2:1e39\n"}, "in line 2"),
        ({"train": "1 5 3\n1 0_2:1\n"}, "in line 2"),
        ({"train": "1 5 3\n1 2:1:1\n"}, "in line 2"),
        ({"train": "1 5 3\n3 2:1\n"}, "labels from 0 to 2 in line 2, as line 1 says. Received: 3"),
        ({"train": "1 5 3\n-1 2:1\n"}, "labels from 0 to 2 in line 2.* Received: -1"),
        ({"train": "2 5 3\n1 2:1\n1 5:1\n"}, "words from 0 to 4 in line 3.* Received: 5"),
        ({"train": "1 5 3\n1,2,1 2:1\n"}, "each label once in line 2"),
        ({"train": "1 5 3\n1 2:1 2:1\n"}, "each word once in line 2"),
        ({"train": b"1 5 3\n\xff\xfe 2:1\n"}, "in line 2"),
        ({"train": "1 4 3\n1 2:1\n"}, "as many words and labels in both files"),
        ({"train": "1 5 3\n 2:1\n", "test": "1 5 3\n\n"}, "at least one point with a label"),
        ({"words": "a\nb\n"}, "`words.txt`: expected 5 lines, one for each. Received: 2"),
        ({"words": "a\nb\n\nd\ne\n"}, "`words.txt`: expected a text in every line.*line 3"),
        ({"labels": "a\n"}, "`labels.txt`: expected 3 lines"),
        ({"labels": b"a\n\xff\nc\n"}, "`labels.txt`: expected UTF-8"),
        ({"test": None}, "`source`: expected a folder with train.txt and test.txt, or with all"),
        ({"all": TRAIN, "test": None}, "`source`: expected a folder with train.txt"),
    ],
)
def test_bad_files(changed, message, tmp_path):
    with pytest.raises(InputError, match=message):
        load(write(tmp_path / "bad", **changed))


def test_another_encoding_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"`columns\.words`: expected an encoding among"):
        load(write(tmp_path), columns=encoded("categorical"))


@needs_shared
def test_bibtex_is_what_the_file_says():
    data = load(f"xmc:{SHARED / 'bibtex'}", columns=encoded("multi_hot"))
    assert (len(data.train), len(data.test), len(data.items)) == (11616, 6146, 159)
    words = (SHARED / "bibtex" / "words.txt").read_text().split("\n")
    assert words[1] == "000"
    first = 0
    for name, part in (("train", data.train), ("test", data.test)):
        points = read_file((SHARED / "bibtex" / f"{name}.txt").read_text())
        events = [(first + n, label) for n, (own, _) in enumerate(points) for label in own]
        assert list(zip(part.query_features["point_id"], part.item_ids, strict=True)) == events
        flags = part.query_features["words"]
        for event in (0, len(part) // 2, len(part) - 1):
            wanted = sorted(points[events[event][0] - first][1])
            assert np.flatnonzero(flags[event]).tolist() == wanted
        first = len(points)


@needs_shared
@pytest.mark.parametrize("name", ["delicious", "stackex_chemistry"])
def test_points_without_labels_are_counted(name, caplog):
    with caplog.at_level(logging.INFO, "tfrs_negatives"):
        data = load(f"xmc:{SHARED / name}")
    skipped = {"delicious": "14 of 16105", "stackex_chemistry": "6 of 6961"}[name]
    events = {"delicious": 246_088 + 60_229, "stackex_chemistry": 14_683}[name]
    assert f"{skipped} points have no label: skipped" in caplog.messages
    assert len(data.train) + len(data.test) == events


def test_both_towers_read_words(tmp_path):
    data = load(write(tmp_path))
    for features, rows in ((data.train, 4), (data.items, 3)):
        specs = infer_features(features)
        tower = build_tower(specs, embedding_dim=4, hidden=[], output_dim=3)
        columns = {spec.name: features.features[spec.name] for spec in specs}
        assert any(name.endswith("words") for name in columns)
        assert tower(columns).shape == (rows, 3)


def test_it_trains_from_the_command_line(tmp_path, call):
    rng = np.random.default_rng(0)
    lines = [f"{n % 3} {n % 3}:1 {3 + rng.integers(2)}:2" for n in range(30)]
    text = "\n".join(["30 5 3", *lines, ""])
    source = write(tmp_path / "planted", train=text, test=text, labels="a\nb c\nd\n")
    out = tmp_path / "run"
    sizes = ["model.embedding_dim=8", "model.hidden=[]", "model.output_dim=8"]
    code, _, error = call(
        *("train", "--out", out, f"data.source={source}", *sizes, "task.recipe=in_batch"),
        *("train.epochs=20", "train.batch_size=8", "train.learning_rate=0.05"),
        *("evaluation.ks=[1, 3]", "index.ks=[3]", "evaluation.propensity=[0.55, 1.5]"),
    )
    assert code == 0, error
    metrics = json.loads((out / "metrics.json").read_text())["test"]
    # The first word says the label.
    assert metrics["precision_at_1"] == metrics["psp_at_1"] == 1.0
    schema = json.loads((out / "schema.json").read_text())
    assert {line["name"] for line in schema} >= {"point_id", "words", "label_words"}


# ------------------------------------------------------------------ metrics


def test_all_hits_count_in_their_mrr_by_hand():
    # Lists 0 1 2 3; query 0 looks for 0, 1 and 3, query 1 for 2.
    model = from_scores([[4, 3, 2, 1], [4, 3, 2, 1]])
    metrics = evaluate(model, log((0, 0), (0, 1), (0, 3), (1, 2)), ks=[2, 4]).metrics
    assert metrics["all_hits_mrr_at_2"] == pytest.approx((1 + 1 / 2 + 0) / 2)
    assert metrics["all_hits_mrr_at_4"] == pytest.approx((1 + 1 / 2 + 1 / 4 + 1 / 3) / 2)
    assert metrics["mrr_at_4"] == pytest.approx((1 + 1 / 3) / 2)


def test_propensity_scored_precision_by_hand():
    # Of 4 training queries, 4 have item 0, 2 have item 1 (one of them twice), 1 has item 2.
    train = log(*[(q, 0) for q in (5, 6, 7, 8)], (5, 1), (5, 1), (6, 1), (7, 2))
    items = from_scores([[0] * 4]).items
    a, b = 0.6, 2.6
    c = (math.log(4) - 1) * 3.6**0.6
    w = [1 + c * (n + 2.6) ** -0.6 for n in (4, 2, 1, 0)]
    np.testing.assert_allclose(inverse_propensities(train, items, a=a, b=b), w, rtol=1e-12)
    # Lists 0 1 2 3 and 3 2 1 0; query 0 looks for 0, 2 and 3, query 1 for 3.
    model = from_scores([[4, 3, 2, 1], [1, 2, 3, 4]])
    test = log((0, 0), (0, 2), (0, 3), (1, 3))
    metrics = evaluate(model, test, ks=[1, 2, 4], train=train, propensity=[a, b]).metrics
    assert metrics["psp_at_1"] == pytest.approx((w[0] + w[3]) / (w[3] + w[3]))
    assert metrics["psp_at_2"] == pytest.approx((w[0] + w[3]) / (w[3] + w[2] + w[3]))
    assert metrics["psp_at_4"] == pytest.approx(1)


def random_logs(seed, num_queries=30, num_items=25):
    rng = np.random.default_rng(seed)
    scores = rng.integers(-3, 4, (num_queries, num_items))

    def events(number):
        items = np.minimum(rng.zipf(1.4, number) - 1, num_items - 1)
        return [*zip(rng.integers(0, num_queries, number).tolist(), items.tolist(), strict=True)]

    return scores, events(90), events(150)


def sets_of(events):
    found = {}
    for query, row in events:
        found.setdefault(query, set()).add(row)
    return found


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("constants", [(0.55, 1.5), (0.6, 2.6), (0.5, 0.4)])
def test_propensity_scored_precision_equals_the_slow_one(seed, constants):
    scores, test, train = random_logs(seed)
    for query, row in test:
        scores[query, row] += 2  # half found
    labels_of, relevant_of = sets_of(train), sets_of(test)
    weights = [inverse_propensity(row, labels_of, *constants) for row in range(scores.shape[1])]
    lists = {q: ranked_list(scores[q], relevant_of[q], set()) for q in relevant_of}
    metrics = evaluate(
        from_scores(scores), log(*test), ks=[1, 3, 5], train=log(*train), propensity=constants
    ).metrics
    for k in (1, 3, 5):
        expected = psp(lists, relevant_of, weights, k)
        assert 0 < expected < 1
        assert metrics[f"psp_at_{k}"] == pytest.approx(expected, rel=1e-9)


def test_an_ideal_ranking_has_a_propensity_scored_precision_of_one():
    _, test, train = random_logs(2)
    relevant_of, labels_of = sets_of(test), sets_of(train)
    weights = [inverse_propensity(row, labels_of, 0.55, 1.5) for row in range(25)]
    # What is looked for first, and of that the rarest.
    scores = np.zeros((30, 25))
    for query, rows in relevant_of.items():
        for row in rows:
            scores[query, row] = weights[row]
    metrics = evaluate(
        from_scores(scores), log(*test), ks=[1, 2, 20], train=log(*train), propensity=(0.55, 1.5)
    ).metrics
    for k in (1, 2, 20):
        assert metrics[f"psp_at_{k}"] == pytest.approx(1, abs=1e-12)


def test_propensities_are_computed_only_where_asked():
    model, train = from_scores([[3, 2, 1]]), log((0, 0), (1, 0), (2, 1))
    assert "psp_at_1" not in evaluate(model, log((0, 0)), ks=[1], train=train).metrics
    with pytest.raises(InputError, match="`propensity`: expected None without a training log"):
        evaluate(model, log((0, 0)), ks=[1], propensity=(0.55, 1.5))
    bad = {"propensity": [(1.0,), 3, "ab", (1, None)], "propensity.b": [(1, 0)]}
    for name, received in {**bad, "propensity.a": [(-1, 1), (math.nan, 1)]}.items():
        for one in received:
            with pytest.raises(InputError, match=f"`{name}`"):
                evaluate(model, log((0, 0)), ks=[1], train=train, propensity=one)
    with pytest.raises(InputError, match=r"at least 3 queries\. Received: 2"):
        evaluate(model, log((0, 0)), ks=[1], train=log((0, 0), (1, 1)), propensity=(1, 1))


def test_the_configuration_asks_for_them():
    config = load_config(overrides=["evaluation.propensity=[0.5, 0.4]"])
    assert config.evaluation.propensity == [0.5, 0.4]
    for bad in ("[0.5]", "[0.5, 0]", "0.5"):
        with pytest.raises(InputError, match=r"evaluation\.propensity"):
            load_config(overrides=[f"evaluation.propensity={bad}"])
