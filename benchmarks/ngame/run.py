"""Batches of similar queries: are their negatives harder, what do they cost, what do they find?

Three parts, on MovieLens-100K with the towers of the thesis:

- hardness: the negatives in clustered and in random batches of 128, along the curriculum and for
  one model by cluster size;
- seconds: an epoch of each method in turn, batches of 1,024 and the bank of the thesis, clustering
  included;
- parts: what correction, masks, clusters and radius do to recall, batches of 2,048, several seeds.

Run it from the root of the repository; it writes results.json, hardness.png and README.md beside
itself, about twenty minutes on two cores::

    .venv/bin/python -m benchmarks.ngame.run --data ml-100k:../shared/data/ml-100k --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import matplotlib.pyplot as plt
import numpy as np

import tfrs_negatives as tfn

# isort: split
import tensorflow as tf

from tfrs_negatives import losses
from tfrs_negatives.core.files import write_text
from tfrs_negatives.data import Interactions, RetrievalData
from tfrs_negatives.model import recipes
from tfrs_negatives.runs.build import build_batches, build_model
from tfrs_negatives.runs.config import RunConfig, load_config
from tfrs_negatives.runs.train import load_data

HERE = Path(__file__).parent
BATCH, EPOCHS = 2048, 8
# A batch of 2,048 holds more rows than there are items: there is nothing left to choose from.
PROBED_BATCH, PROBED_BATCHES = 128, 64
TIMED_BATCH, BANK = 1024, 1152
PACKAGES = ("tensorflow", "tf_keras", "numpy", "tfrs-negatives")
NGAME = ("task.recipe=ngame", "batches.double_every=2", "batches.refresh_every=1")
RANDOM = ("task.recipe=ngame", "batches.order=random")
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SECONDS = {
    "in-batch + logQ": ["task.recipe=in_batch"],
    "NGAME": list(NGAME),
    "cross-batch": [
        "task.recipe=cross_batch_negative_sampling",
        f"task.recipe.capacity={BANK}",
    ],
    "cross-batch NGAME": [
        "task.recipe=cross_batch_ngame",
        f"task.recipe.capacity={BANK}",
        *NGAME[1:],
    ],
}
# What the row is, its configuration, and whether held-out positives are masked too.
PARTS: dict[str, tuple[tuple[str, ...], bool]] = {
    "in-batch, uncorrected": (("task.recipe=in_batch", "task.correct=null"), False),
    "in-batch + logQ": (("task.recipe=in_batch",), False),
    "  known positives masked": ((*RANDOM, "task.recipe.slack=.inf"), False),
    "  clusters": ((*NGAME, "task.recipe.slack=.inf"), False),
    "  radius, slack 3": (RANDOM, False),
    "  clusters, radius, slack 3: NGAME": (NGAME, False),
    "    clusters of 16 from the beginning": (
        (*NGAME[:1], "batches.cluster_size=16", "batches.double_every=99"),
        False,
    ),
    "    uncorrected": ((*NGAME, "task.correct=null"), False),
    "    slack 0": ((*NGAME, "task.recipe.slack=0.0"), False),
    "    slack 0, random batches": ((*RANDOM, "task.recipe.slack=0.0"), False),
    "    slack 0, held-out positives masked": ((*NGAME, "task.recipe.slack=0.0"), True),
    "    slack 0, uncorrected: the thesis": (
        (*NGAME, "task.recipe.slack=0.0", "task.correct=null"),
        False,
    ),
    "    hinge of the ten hardest, uncorrected: NGAME's code": (
        (*NGAME, "task.correct=null"),
        False,
    ),
    "  no radius, held-out positives masked": ((*RANDOM, "task.recipe.slack=.inf"), True),
}
SHOWN = ("recall_at_1", "recall_at_10", "recall_at_50", "recall_at_100")


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="ml-100k:FOLDER")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=8, help="epochs of each method in turn")
    parser.add_argument("--keep-parts", action="store_true", help="keep the slow third part")
    arguments = parser.parse_args()
    data = load_data(_config(arguments.data, 0, []))
    before = json.loads((HERE / "results.json").read_text()) if arguments.keep_parts else None
    result = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "seeds": arguments.seeds,
        "seconds": measure_seconds(arguments.data, data, arguments.rounds),
        **measure_hardness(arguments.data, data),
        "parts": {},
    }
    result["parts"] = (
        before["parts"] if before else measure_parts(arguments.data, data, arguments.seeds)
    )
    write_text(HERE / "results.json", json.dumps(result, indent=2) + "\n")
    plot(result)
    write_text(HERE / "README.md", render(result))


def _config(source: str, seed: int, overrides: list[str]) -> RunConfig:
    shared = [
        f"data.source={source}",
        "data.min_rating=3",
        "data.split=random",
        f"train.batch_size={BATCH}",
        f"train.seed={seed}",
    ]
    return load_config(overrides=[*shared, *overrides])


# ------------------------------------------------------------------ seconds


def measure_seconds(source: str, data: RetrievalData, rounds: int) -> dict[str, list[float]]:
    """Returns the seconds of each epoch of each method, the first, which traces, left out."""
    methods = {}
    for name, overrides in SECONDS.items():
        # Large clusters from the beginning, made anew in every epoch: the most they can cost.
        sizes = ["batches.cluster_size=16", f"train.batch_size={TIMED_BATCH}"]
        config = _config(source, 0, [*overrides, *sizes])
        model = build_model(config, data)
        methods[name] = (model, build_batches(config, data, item_key=model.item_key))
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    steps = data.train.steps_per_epoch(TIMED_BATCH)
    for number in range(rounds + 1):
        for name, (model, batches) in methods.items():
            start = number * steps
            began = time.perf_counter()
            if batches is None:
                stream = data.train.stream(TIMED_BATCH, item_key=model.item_key, start_step=start)
                model.fit(stream, steps_per_epoch=steps, verbose=0)
            else:
                dataset, refresh = batches.dataset(start_step=start), tfn.RefreshClusters(batches)
                model.fit(dataset, steps_per_epoch=steps, callbacks=[refresh], verbose=0)
            if number:
                seconds[name].append(time.perf_counter() - began)
    return seconds


# ------------------------------------------------------------------ hardness


class Hardness:
    """Measures the in-batch negatives of batches given by row number.

    Args:
        data: the log.
    """

    def __init__(self, data: RetrievalData) -> None:
        self.data, self.users = data, data.train.query_features
        self.known = tfn.KnownPositives(data.train, data.items)
        self.held_out = tfn.KnownPositives(data.test, data.items)

    def __call__(self, model: tfn.TwoTower, order: np.ndarray) -> dict[str, float]:
        """Returns means over the first batches of an order of the training events."""
        parts = [
            self._of_batch(model, order[n * PROBED_BATCH : (n + 1) * PROBED_BATCH])
            for n in range(PROBED_BATCHES)
        ]
        return {name: statistics.fmean(part[name] for part in parts) for name in parts[0]}

    def _of_batch(self, model: tfn.TwoTower, rows: np.ndarray) -> dict[str, float]:
        ids = self.data.train.item_ids[rows]
        features = {name: tf.constant(column[rows]) for name, column in self.users.items()}
        items = self.data.items.gather(self.data.items.rows(ids))
        scores = (model.query_vectors(features) @ tf.transpose(model.item_vectors(items))).numpy()
        users = features[self.data.train.query_key]
        kept = ~self.known.dropped_cells(users, tf.constant(ids)).numpy()
        false = self.held_out.dropped_cells(users, tf.constant(ids)).numpy() & kept
        within = kept & (scores >= np.diag(scores)[:, None])
        return {
            "top_negative": float(np.where(kept, scores, -1.0).max(axis=1).mean()),
            "within_radius": float((within.sum(axis=1) / kept.sum(axis=1)).mean()),
            "false_negatives": float(false.sum() / kept.sum()),
            "false_within_radius": float((false & within).sum() / max(1, within.sum())),
        }


class ProbeEpochs(tf.keras.callbacks.Callback):
    """Measures the batches of each epoch, and random ones, before it is trained on."""

    def __init__(self, hardness: Hardness, batches: tfn.ClusteredBatches) -> None:
        super().__init__()
        self.hardness, self.batches = hardness, batches
        self.epochs: list[dict[str, Any]] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Measures."""
        order = np.random.default_rng(epoch).permutation(len(self.batches.log))
        size = self.batches.num_queries / self.batches.num_clusters(epoch)
        clustered = self.hardness(self.model, self.batches.order(epoch))
        random = self.hardness(self.model, order)
        self.epochs.append({"cluster_size": size, "clustered": clustered, "random": random})


def measure_hardness(source: str, data: RetrievalData) -> dict[str, Any]:
    """Returns the hardness in each epoch of a curriculum, and by cluster size for its last model.

    The size doubles in every epoch.
    """
    hardness = Hardness(data)
    growing = ["batches.double_every=1", "batches.min_clusters=4"]
    config = _config(source, 0, [*NGAME, *growing, f"train.batch_size={PROBED_BATCH}"])
    tf.keras.utils.set_random_seed(0)
    model = build_model(config, data)
    batches = build_batches(config, data, item_key=model.item_key)
    probe = ProbeEpochs(hardness, batches)
    model.fit(
        batches.dataset(),
        steps_per_epoch=batches.steps_per_epoch,
        epochs=9,
        callbacks=[tfn.RefreshClusters(batches), probe],
        verbose=0,
    )
    by_size = []
    for size in SIZES:
        fixed = tfn.ClusteredBatches(
            data.train, PROBED_BATCH, item_key=model.item_key, cluster_size=size, min_clusters=1
        )
        if fixed.is_due(0):
            fixed.refresh(model, 0)
        by_size.append({"cluster_size": size, **hardness(model, fixed.order(0))})
    return {"curriculum": probe.epochs, "by_size": by_size}


# ------------------------------------------------------------------ parts


def measure_parts(source: str, data: RetrievalData, seeds: list[int]) -> dict[str, Any]:
    """Returns the metrics of each row, one value for each seed."""
    parts: dict[str, dict[str, list[float]]] = {}
    for name, (overrides, is_oracle) in PARTS.items():
        found: dict[str, list[float]] = {metric: [] for metric in (*SHOWN, "empty_row_share")}
        for seed in seeds:
            config = _config(source, seed, list(overrides))
            split = load_data(config)
            for metric, value in train(config, split, is_oracle, "hinge" in name).items():
                found[metric].append(value)
        parts[name] = found
        print(f"{name:60s}", *[f"{statistics.fmean(found[metric]):.4f}" for metric in SHOWN])
    return parts


def train(config: RunConfig, data: RetrievalData, is_oracle: bool, hinge: bool) -> dict[str, float]:
    """Trains one row and returns its metrics; an oracle masks what is held out as well."""
    tf.keras.utils.set_random_seed(config.train.seed)
    model = build_model(config, data)
    if is_oracle or hinge:
        model = _with_task(model, _task(config, data, is_oracle, hinge))
    batches = build_batches(config, data, item_key=model.item_key)
    steps = data.train.steps_per_epoch(BATCH)
    if batches is None:
        seed = config.train.seed
        dataset, callbacks = data.train.stream(BATCH, item_key=model.item_key, seed=seed), []
    else:
        dataset, callbacks = batches.dataset(), [tfn.RefreshClusters(batches)]
    history = model.fit(
        dataset, steps_per_epoch=steps, epochs=EPOCHS, callbacks=callbacks, verbose=0
    ).history
    ks = sorted(int(name.rsplit("_", 1)[1]) for name in SHOWN)
    metrics = tfn.evaluate(model, data.test, ks=ks, exclude=data.train).metrics
    empty = history.get("empty_row_share", [0.0])[-1]
    return {**{name: metrics[name] for name in SHOWN}, "empty_row_share": float(empty)}


def _task(config: RunConfig, data: RetrievalData, is_oracle: bool, hinge: bool) -> tfn.Retrieval:
    history = _joined(data.train, data.test) if is_oracle else data.train
    options: dict[str, Any] = {"correct": config.task.correct, "seed": config.train.seed}
    if hinge:
        loss = losses.TripletHinge(0.3 / 0.1, focus=0.1 / 0.1)
        options |= {"miners": [tfn.Hardest(10)], "loss": loss}
    slack = config.task.expansion.parts["miners"][0].arguments["slack"]
    return recipes.ngame(data.items, history=history, slack=slack, **options)


def _with_task(model: tfn.TwoTower, task: tfn.Retrieval) -> tfn.TwoTower:
    changed = tfn.TwoTower(model.query_tower, model.item_tower, model.items, task)
    changed.compile(tfn.SparseAdam(0.003))
    return changed


def _joined(one: Interactions, other: Interactions) -> Interactions:
    key = one.query_key
    queries = np.concatenate([log.query_features[key] for log in (one, other)])
    return Interactions({key: queries}, np.concatenate([one.item_ids, other.item_ids]), key)


# ------------------------------------------------------------------ report


def plot(result: dict[str, Any]) -> None:
    """Draws how much harder clustered batches are than random ones of the same model."""
    figure, axes = plt.subplots(2, 2, figsize=(9, 6), sharex="col", sharey="row")
    curriculum = [(epoch["clustered"], epoch["random"]) for epoch in result["curriculum"]]
    by_size = [(probe, result["by_size"][0]) for probe in result["by_size"]]
    sizes = [
        [epoch["cluster_size"] for epoch in result["curriculum"]],
        [probe["cluster_size"] for probe in result["by_size"]],
    ]
    for column, (pairs, x) in enumerate(zip((curriculum, by_size), sizes, strict=True)):
        within = [ours["within_radius"] / other["within_radius"] for ours, other in pairs]
        top = [ours["top_negative"] - other["top_negative"] for ours, other in pairs]
        axes[0, column].semilogx(x, within, "o-", base=2)
        axes[1, column].semilogx(x, top, "o-", base=2)
    for row, level in enumerate((1.0, 0.0)):
        for axis in axes[row]:
            axis.axhline(level, color="black", linewidth=1)
    axes[0, 0].set(ylabel="within the radius, ratio", title="in training")
    axes[0, 1].set(title="by size, for the last model")
    axes[1, 0].set(ylabel="hardest cosine, difference", xlabel="cluster size")
    axes[1, 1].set(xlabel="cluster size")
    figure.tight_layout()
    figure.savefig(HERE / "hardness.png", dpi=110, metadata={"Software": None})


def render(result: dict[str, Any]) -> str:
    """Renders the tables."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    usage = next(line.strip() for line in __doc__.splitlines() if ".venv" in line)
    parts = [
        "# NGAME\n",
        "Written by `run.py`. MovieLens-100K, ratings of 3 and more, the towers of the thesis, "
        "known positives of a row left out of its negatives.\n",
        f"    {usage}\n",
        *_hardness_tables(result),
        *_seconds_table(result["seconds"]),
        *_parts_table(result["parts"], result["seeds"]),
        f"\n{result['date']}, {result['machine']}, shared: read ratios; {versions}.",
    ]
    return "\n".join(parts) + "\n"


def _hardness_tables(result: dict[str, Any]) -> list[str]:
    lines = [
        "## Hardness\n",
        "Means over rows of the largest cosine of a negative, and of the share of negatives that "
        "score at least as high as the positive; and the share of held-out positives among all "
        f"negatives and among those. Batches of {PROBED_BATCH}, the size doubles in every epoch, "
        "seed 0; `random` is the same model on random batches, and the plot compares the two.\n",
        "![hardness](hardness.png)\n",
        "| epoch | cluster size | top negative | random | within radius | random | false | "
        "false within |",
        "|---" * 8 + "|",
    ]
    for number, epoch in enumerate(result["curriculum"], 1):
        ours, other = epoch["clustered"], epoch["random"]
        lines.append(
            f"| {number} | {epoch['cluster_size']:.0f} | {ours['top_negative']:.3f} | "
            f"{other['top_negative']:.3f} | {ours['within_radius']:.1%} | "
            f"{other['within_radius']:.1%} | {ours['false_negatives']:.1%} | "
            f"{ours['false_within_radius']:.1%} |"
        )
    return lines


def _seconds_table(seconds: dict[str, list[float]]) -> list[str]:
    base = seconds["in-batch + logQ"]
    lines = [
        "\n## Seconds per epoch\n",
        f"Batches of {TIMED_BATCH:,}, M = {BANK:,}. In turn within one process, {len(base)} turns, "
        "clusters made anew before every epoch and counted; the ratio is to in-batch in the same "
        "turn.\n",
        "| method | s/epoch, median | ratio, median | smallest to largest |",
        "|---|---|---|---|",
    ]
    for name, values in seconds.items():
        ratios = [mine / other for mine, other in zip(values, base, strict=True)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        median = f"{statistics.median(values):.2f} | {statistics.median(ratios):.2f}"
        lines.append(f"| {name} | {median} | {spread} |")
    return lines


def _parts_table(parts: dict[str, Any], seeds: list[int]) -> list[str]:
    lines = [
        "\n## What each part does\n",
        f"Batches of {BATCH:,}, {EPOCHS} epochs, {len(seeds)} seeds, mean ± standard deviation; "
        "training items excluded. Indented rows change the row above that is indented less. "
        "Masking the held-out positives uses the test part: it is a diagnosis, no method.\n",
        "| row | " + " | ".join(SHOWN) + " | rows without a negative |",
        "|---" * (len(SHOWN) + 2) + "|",
    ]
    for name, found in parts.items():
        label = "&nbsp;" * (2 * (len(name) - len(name.lstrip()))) + name.strip()
        cells = [_cell(found[metric]) for metric in SHOWN]
        empty = f"{statistics.fmean(found['empty_row_share']):.1%}"
        lines.append("| " + " | ".join([label, *cells, empty]) + " |")
    return lines


def _cell(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.4f}{spread}"


if __name__ == "__main__":
    main()
