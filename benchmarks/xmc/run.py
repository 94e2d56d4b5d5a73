"""Extreme classification: what do the losses of DEXML reach beside a ridge regression?

Towers over words for points and labels, trained with each loss, with and without mined negatives,
on the given split, several seeds. Beside them a ridge regression of the
label matrix on tf-idf words in closed form, and the most popular labels.

Run it from the root of the repository; it adds each data set to results.json and renders README.md
beside itself, half an hour for bibtex on two busy cores::

    .venv/bin/python -m benchmarks.xmc.run --data ../shared/data/xmc/bibtex

The settings were chosen on a fifth of the training points, by::

    .venv/bin/python -m benchmarks.xmc.run --data ../shared/data/xmc/bibtex \
        --look "decoupled" epochs=20 temperature=0.1
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

import tfrs_negatives as tfn

# isort: split
import tensorflow as tf

from benchmarks.xmc.render import render
from tfrs_negatives.core.files import write_text
from tfrs_negatives.data import RetrievalData, splits
from tfrs_negatives.evaluation import MostPopular, evaluate
from tfrs_negatives.model import recipes

HERE = Path(__file__).parent
PACKAGES = ("tensorflow", "tf_keras", "numpy", "tfrs-negatives")
KS = (1, 3, 5, 10, 50, 100)
PROPENSITY = (0.55, 1.5)
HELD_OUT, LOOK_SEED = 0.2, 1
SETTINGS: dict[str, dict[str, Any]] = {
    "bibtex": {
        "ridge": 1.0,
        "chosen": "They were chosen in 18 looks at a fifth of the training points, a seed each, "
        "16 of them of the row `decoupled`: encoding, layers, width, dropout, temperature, "
        "learning rate and epochs; P@1 from 57.5 to 63.4, where the ridge had 64.3. "
        "Width and dropout mattered most. The ridge's penalty was given.",
    },
    "delicious": {
        "ridge": 3.0,
        "batch_size": 4096,
        "chosen": "They are those of bibtex but for the batch: nothing was looked for. The ridge's "
        "penalty was given.",
    },
}
DEFAULTS: dict[str, Any] = {
    "encoding": "multi_hot",
    "embedding_dim": 512,
    "hidden": [],
    "dropout": 0.5,
    "batch_size": 512,
    "epochs": 10,
    "learning_rate": 0.003,
    "similarity": "cosine",
    "temperature": 0.1,
    "each_point_once": True,
    "first_mined": 6,
    "every": 5,
}
Made = tuple[tfn.Retrieval, list[tf.keras.callbacks.Callback]]


# ------------------------------------------------------------------ the rows


def _union(log: tfn.Interactions, items: Any, told: dict[str, Any], folder: str, **options: Any):
    mining = {"first_epoch": told["first_mined"], "every_epochs": told["every"]}
    score = {name: told[name] for name in ("similarity", "temperature")}
    return tfn.dexml(items, log, folder=folder, **score, **mining, **options)


def shared(*, mined: bool, decoupled: bool, every_positive: bool = False) -> Callable[..., Made]:
    """Returns what makes a task on the union of the batch's labels, with or without mined ones."""

    def make(log: tfn.Interactions, items: Any, told: dict[str, Any], folder: str) -> Made:
        loss = {"loss": tfn.losses.DecoupledSoftmax()} if every_positive else {}
        task, callback = _union(log, items, told, folder, decoupled=decoupled, **loss)
        return task, [callback] if mined else []

    return make


def corrected(log: tfn.Interactions, items: Any, told: dict[str, Any], folder: str) -> Made:
    """The in-batch softmax with logQ, whose limit is the softmax over all labels."""
    score = {name: told[name] for name in ("similarity", "temperature")}
    return recipes.in_batch(items, **score), []


ROWS: dict[str, Callable[..., Made]] = {
    "in-batch softmax, logQ": corrected,
    "softmax": shared(mined=False, decoupled=False),
    "softmax, mined": shared(mined=True, decoupled=False),
    "decoupled": shared(mined=False, decoupled=True),
    "decoupled, mined": shared(mined=True, decoupled=True),
    "decoupled, all positives": shared(mined=False, decoupled=True, every_positive=True),
}


# ------------------------------------------------------------------ one run


def read(path: str, encoding: str) -> RetrievalData:
    """Reads a folder with the words in one of their forms."""
    words = tfn.Column("query", encoding=encoding)
    return tfn.data.load(f"xmc:{path}", columns={"words": words}, split="as_given")


def hold_out(data: RetrievalData) -> RetrievalData:
    """Puts a share of the training points in the place of the test part."""
    train, held_out = splits.by_user(data.train, test_fraction=HELD_OUT, seed=LOOK_SEED)
    return replace(data, train=train, test=held_out)


def words_tower(num_words: int, told: dict[str, Any]) -> tf.keras.Model:
    """The words as the source weighs them, some dropped in training, and a linear layer."""
    words = tf.keras.Input((num_words,), name="words", dtype=tf.float32)
    kept = tf.keras.layers.Dropout(told["dropout"])(words)
    vectors = tf.keras.layers.Dense(told["embedding_dim"], name="words_embedding")(kept)
    return tf.keras.Model({"words": words}, vectors, name="query")


def build(data: RetrievalData, task: tfn.Retrieval, told: dict[str, Any]) -> tfn.TwoTower:
    """Makes the towers: words of points, words and ids of labels."""
    seen = data.train.item_counts(data.items) > 0
    of_items = {name: column[seen] for name, column in data.items.features.items()}
    sizes = {"embedding_dim": told["embedding_dim"], "output_dim": told["embedding_dim"]}
    labels = tfn.infer_features(of_items, declared=data.items.columns)
    item_tower = tfn.build_tower(labels, hidden=[], name="item", **sizes)
    if told["dropout"] is None:
        points = tfn.infer_features(data.train)
        query_tower = tfn.build_tower(points, hidden=told["hidden"], name="query", **sizes)
    else:
        query_tower = words_tower(data.train.query_features["words"].shape[1], told)
    model = tfn.TwoTower(query_tower, item_tower, data.items, task)
    steps = told["epochs"] * data.train.steps_per_epoch(told["batch_size"])
    falling = tf.keras.optimizers.schedules.CosineDecay(told["learning_rate"], steps)
    model.compile(tfn.SparseAdam(falling))
    return model


def train(data: RetrievalData, row: str, told: dict[str, Any], seed: int) -> dict[str, float]:
    """Trains and measures one row."""
    began = time.perf_counter()
    tf.keras.utils.set_random_seed(seed)
    log = data.train
    if told["each_point_once"]:
        _, point = log.queries()
        log = replace(log, weights=(1 / np.bincount(point))[point])
    with tempfile.TemporaryDirectory() as folder:
        task, callbacks = ROWS[row](log, data.items, told, folder)
        model = build(data, task, told)
        batches = log.dataset(told["batch_size"], item_key=data.items.item_key, seed=seed)
        model.fit(batches, epochs=told["epochs"], verbose=0, callbacks=callbacks)
    metrics = measure(model, data)
    return {**metrics, "seconds": time.perf_counter() - began}


def measure(model: Any, data: RetrievalData) -> dict[str, float]:
    """Evaluates on the test part."""
    ks = [k for k in KS if k <= len(data.items)]
    found = evaluate(model, data.test, ks=ks, train=data.train, propensity=PROPENSITY)
    return {name: value for name, value in found.metrics.items() if name in SHOWN}


SHOWN = (
    *(f"precision_at_{k}" for k in (1, 3, 5)),
    *(f"psp_at_{k}" for k in (1, 3, 5)),
    "ndcg_at_5",
    "all_hits_mrr_at_10",
    *(f"recall_at_{k}" for k in (10, 50, 100)),
)


# ------------------------------------------------------------------ references


class Ridge:
    """The label matrix on tf-idf words, centred, in closed form: a model that `evaluate` ranks."""

    similarity = "dot"

    def __init__(self, log: tfn.Interactions, items: tfn.ItemCatalogue, penalty: float) -> None:
        features, point = log.queries()
        words = features["words"].astype(np.float64)
        labels = np.zeros((len(words), len(items)))
        labels[point, log.item_rows(items)] = 1
        self.mean, self.share = words.mean(axis=0), labels.mean(axis=0)
        centred = words - self.mean
        gram = centred.T @ centred + penalty * np.eye(words.shape[1])
        self.weights = np.linalg.solve(gram, centred.T @ (labels - self.share))
        self.items = items
        self.query_signature = {"words": tf.TensorSpec([None, words.shape[1]])}

    def query_vectors(self, features: dict[str, Any]) -> tf.Tensor:
        """Returns the centred words and a one."""
        centred = np.asarray(features["words"]) - self.mean
        return tf.constant(np.pad(centred, [(0, 0), (0, 1)], constant_values=1), tf.float32)

    def item_vectors(self, features: dict[str, Any]) -> tf.Tensor:
        """Returns the weights of each label, and its share of the points."""
        rows = self.items.rows(features[self.items.item_key]).numpy()
        return tf.constant(np.vstack([self.weights, self.share]).T[rows], tf.float32)


def references(path: str, penalty: float, *, held_out: bool = False) -> dict[str, Any]:
    """Measures what needs no training."""
    data = read(path, "numeric")
    data = hold_out(data) if held_out else data
    counts = data.train.item_counts(data.items)
    return {
        "ridge on tf-idf": measure(Ridge(data.train, data.items, penalty), data),
        "most popular": measure(MostPopular(data.items, counts), data),
    }


# ------------------------------------------------------------------ all of it


def look(path: str, row: str, told: dict[str, Any]) -> None:
    """Prints what one setting reaches on the held-out training points."""
    data = hold_out(read(path, told["encoding"]))
    found = train(data, row, told, seed=0)
    shown = {name: round(100 * x, 2) for name, x in found.items() if name != "seconds"}
    print(row, told, shown, f"{found['seconds']:.0f} s", flush=True)


def labels_in_batch(data: RetrievalData, batch_size: int) -> float:
    """Returns how many labels a batch of random events holds on average."""
    counts = data.train.item_counts(data.items)
    return float((1 - (1 - counts / counts.sum()) ** batch_size).sum())


def run(path: str, seeds: list[int], told: dict[str, Any], save: Callable[..., None]) -> None:
    """Trains every row with every seed, and saves after each seed."""
    data = read(path, told["encoding"])
    points = [len(part.queries()[0]["words"]) for part in (data.train, data.test)]
    found = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "load": os.getloadavg()[0],
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "seeds": [],
        "points": points,
        "words": int(data.train.query_features["words"].shape[1]),
        "labels": len(data.items),
        "labels_in_batch": labels_in_batch(data, told["batch_size"]),
        "settings": {name: value for name, value in told.items() if name != "chosen"},
        "chosen": told["chosen"],
        "references": references(path, told["ridge"]),
        "rows": {row: [] for row in ROWS},
    }
    for seed in seeds:
        for row in ROWS:
            found["rows"][row].append(train(data, row, told, seed))
            print(row, seed, found["rows"][row][-1], flush=True)
        found["seeds"].append(seed)
        save(found)


def main() -> None:
    """Looks at a setting, or measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="a folder of the repository's format")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--look", metavar="ROW", help="one row on held-out training points")
    parser.add_argument("settings", nargs="*", help="name=value of another setting, in JSON")
    arguments = parser.parse_args()
    name = Path(arguments.data).name
    told = {**DEFAULTS, **SETTINGS.get(name, {"ridge": 1.0, "chosen": "Not looked for."})}
    for setting in arguments.settings:
        key, _, value = setting.partition("=")
        told[key] = value if key in ("encoding", "similarity") else json.loads(value)
    if arguments.look:
        look(arguments.data, arguments.look, told)
        return

    def save(found: dict[str, Any]) -> None:
        path = HERE / "results.json"
        results = json.loads(path.read_text()) if path.exists() else {}
        results[name] = found
        write_text(path, json.dumps(results, indent=1) + "\n")
        write_text(HERE / "README.md", render(results))

    run(arguments.data, arguments.seeds, told, save)


if __name__ == "__main__":
    main()
