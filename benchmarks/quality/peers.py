"""Trains what others would use, tuned on a held-out part, and writes what it reaches.

    .venv/bin/python benchmarks/quality/peers.py als bpr --data gowalla --seeds 0 1 2
    .venv/bin/python benchmarks/quality/peers.py

Needs the extra `peers`. A result is `results/peer_<method>_<data>.json` as `run.py` writes it; its
`config` holds the grid and what each point reached on a random tenth of the training part of the
first seed. The best point is trained on the whole training part of each seed and evaluated on test
once.

The methods: weighted matrix factorisation (`als`) and BPR (`bpr`) of the library implicit, the
latter also with the popularity that its sampler takes away given back (`bpr_popularity`), EASE
(`ease`), and the retrieval task of TensorFlow Recommenders as its tutorials use it (`tfrs`) and
tuned (`tfrs_tuned`).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tfrs_negatives  # noqa: F401  # isort: skip  (chooses legacy Keras before TensorFlow)
import numpy as np
from peer_models import MODELS, Settings, measure
from run import PACKAGES as OURS
from run import record

from tfrs_negatives.core.files import write_text
from tfrs_negatives.data import Interactions, RetrievalData, splits
from tfrs_negatives.runs.config import RunConfig, load_config
from tfrs_negatives.runs.train import load_data

Stages: TypeAlias = Sequence[Sequence[Settings]]
HERE = Path(__file__).parent
PACKAGES = ("implicit", "scipy", *OURS)
HELD_OUT: dict[str, Any] = {"test_fraction": 0.1, "seed": 0}


class Benchmark(NamedTuple):
    """A data set.

    Attributes:
        config: the configuration whose log, cut and towers are taken.
        criterion: the metric that chooses among settings.
        seeds: method -> seeds where the command names none; one where training takes long or draws
            nothing.
        sample: method -> how many users its settings are chosen on, where all would take too long.
    """

    config: str
    criterion: str
    seeds: Mapping[str, Sequence[int]]
    sample: Mapping[str, int]


class Method(NamedTuple):
    """How a method is tuned.

    Attributes:
        source: what it is, in words.
        base: data -> the settings to begin with.
        stages: data -> changes that are tried on top of the best so far, stage by stage.
    """

    source: str
    base: Mapping[str, Settings]
    stages: Mapping[str, Stages]


BENCHMARKS = {
    "gowalla": Benchmark(
        "gowalla_in_batch_logq",
        "recall_at_20",
        {
            "als": (0, 1, 2),
            "bpr": (0, 1, 2),
            **dict.fromkeys(("bpr_popularity", "ease", "tfrs", "tfrs_tuned"), (0,)),
        },
        dict.fromkeys(("ease", "tfrs", "tfrs_tuned"), 10_000),
    ),
    "ml100k": Benchmark(
        "ml100k_thesis_in_batch_logq",
        "recall_at_10",
        dict.fromkeys(("als", "bpr", "bpr_popularity", "ease", "tfrs", "tfrs_tuned"), range(5)),
        {},
    ),
}


def over(**values: Sequence[Any]) -> list[dict[str, Any]]:
    """Returns the changes of one stage: each value of one setting."""
    return [{name: value} for name, choices in values.items() for value in choices]


def same(value: Any) -> dict[str, Any]:
    """Returns one value for all data sets."""
    return dict.fromkeys(BENCHMARKS, value)


ADAGRAD = {"optimizer": "adagrad", "learning_rate": 0.1}
TUTORIAL = {
    "normalize": False,
    "temperature": None,
    "remove_accidental_hits": False,
    "candidate_sampling_probability": False,
    "batch_size": 4096,
    **ADAGRAD,
}
TUNED = {
    "normalize": True,
    "temperature": 0.1,
    "remove_accidental_hits": True,
    "candidate_sampling_probability": True,
    "optimizer": "sparse_adam",
    "batch_size": 2048,
}
METHODS = {
    "als": Method(
        "implicit.als.AlternatingLeastSquares",
        same({"factors": 64, "bm25": None, "alpha": 40, "regularization": 10, "iterations": 15}),
        {
            "gowalla": [
                [
                    {"alpha": alpha, "bm25": bm25}
                    for alpha in (10, 40, 100)
                    for bm25 in (None, {"K1": 1, "B": 0.5})
                ],
                over(regularization=(1, 100)),
                over(iterations=(5, 8, 30)),
            ],
            "ml100k": [
                [
                    {"alpha": alpha, "regularization": regularization}
                    for alpha in (1, 3, 10)
                    for regularization in (3, 10, 30)
                ],
                over(bm25=({"K1": 1, "B": 0.5},)),
                over(iterations=(5, 8, 30)),
            ],
        },
    ),
    "bpr": Method(
        # One dimension more is the bias.
        "implicit.bpr.BayesianPersonalizedRanking",
        same({"factors": 63, "learning_rate": 0.02, "regularization": 1e-3, "iterations": 100}),
        {
            data: [
                over(learning_rate=rates),
                over(regularization=(1e-4, 1e-2)),
                over(iterations=iterations),
            ]
            for data, rates, iterations in (
                ("gowalla", (0.005, 0.01, 0.02, 0.05), (25, 50, 200)),
                ("ml100k", (0.001, 0.002, 0.005, 0.01, 0.02), (50, 200, 400)),
            )
        },
    ),
    "bpr_popularity": Method(
        "implicit.bpr.BayesianPersonalizedRanking, log popularity added to its scores",
        {
            data: {
                "factors": 63,
                "learning_rate": rate,
                "regularization": 1e-4,
                "iterations": 100,
                "log_popularity": 0.0,
            }
            for data, rate in (("gowalla", 0.02), ("ml100k", 0.005))
        },
        same([over(log_popularity=(0.0, 0.5, 1.0, 1.5))]),
    ),
    "ease": Method(
        "EASE, closed form, written here",
        same({}),
        {
            "gowalla": [over(regularization=(30, 60, 120))],
            "ml100k": [over(regularization=(30, 100, 200, 400, 800))],
        },
    ),
    "tfrs": Method(
        "tfrs.tasks.Retrieval with its defaults",
        same({**TUTORIAL, "epochs": 3}),
        {"gowalla": [over(epochs=(3, 10))], "ml100k": [over(epochs=(3, 8))]},
    ),
    "tfrs_tuned": Method(
        "tfrs.tasks.Retrieval",
        {
            "gowalla": {**TUNED, "learning_rate": 0.01, "epochs": 6},
            "ml100k": {**TUNED, "learning_rate": 0.003, "epochs": 8},
        },
        {
            data: [
                over(temperature=(0.05, 0.1, 0.2, 0.4)),
                [
                    {"candidate_sampling_probability": False},
                    {"remove_accidental_hits": False},
                    {"normalize": False, "temperature": 1.0},
                    {"normalize": False, "temperature": 1.0, **ADAGRAD},
                ],
                over(learning_rate=rates),
                over(epochs=epochs),
            ]
            for data, rates, epochs in (
                ("gowalla", (0.003, 0.02), (12, 25)),
                ("ml100k", (0.001, 0.01), (16, 32)),
            )
        },
    ),
}


def main() -> None:
    """Tunes, trains and evaluates the methods, one result each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("methods", nargs="*", metavar="METHOD", help=", ".join(METHODS))
    parser.add_argument("--data", choices=BENCHMARKS, help="one data set instead of all")
    parser.add_argument("--seeds", nargs="+", type=int, help="instead of those of the table")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.methods) - set(METHODS))
    if unknown:
        parser.error(f"METHOD: expected {', '.join(METHODS)}. Received: {', '.join(unknown)}")
    for data in [arguments.data] if arguments.data else BENCHMARKS:
        for method in arguments.methods or METHODS:
            seeds = arguments.seeds or BENCHMARKS[data].seeds[method]
            try:
                result = run_peer(method, data, seeds)
            except MemoryError as error:
                print(f"{method} {data}: skipped, {error}", flush=True)
                continue
            name = f"peer_{method}_{BENCHMARKS[data].config.removesuffix('_in_batch_logq')}"
            write_text(HERE / "results" / f"{name}.json", json.dumps(result, indent=2) + "\n")


def run_peer(method: str, data: str, seeds: Sequence[int]) -> dict[str, Any]:
    """Chooses the settings, then trains and evaluates once per seed."""
    config, log = _load(data, seeds[0])
    grid = try_settings(method, data, config, log)
    chosen = max(grid, key=lambda point: point["held_out"])["settings"]
    runs = []
    for seed in seeds:
        log = _load(data, seed)[1]
        run = _train_and_measure(method, config, log, chosen, seed)
        value = run["test"][BENCHMARKS[data].criterion]
        print(f"{method} {data} seed {seed}: {value:.4f}, {run['seconds']:.0f} s", flush=True)
        runs.append(run)
    return record(
        runs,
        packages=PACKAGES,
        config=_describe(method, data, config, grid, chosen),
        command=f"benchmarks/quality/peers.py {method} --data {data}",
    )


def try_settings(
    method: str, data: str, config: RunConfig, log: RetrievalData
) -> list[dict[str, Any]]:
    """Trains on most of the training part and measures on the rest of it, stage by stage."""
    sampled = _sample_users(log.train, BENCHMARKS[data].sample.get(method))
    train, held_out = splits.random(sampled, **HELD_OUT)
    cut = replace(log, train=train, test=held_out)
    settings = METHODS[method].base[data]
    grid: list[dict[str, Any]] = []
    for stage in METHODS[method].stages[data]:
        for change in stage:
            tried = {**settings, **change}
            run = _train_and_measure(method, config, cut, tried, HELD_OUT["seed"])
            value = run["test"][BENCHMARKS[data].criterion]
            grid.append({"settings": tried, "held_out": value, "seconds": run["seconds"]})
            print(f"{method} {data} {tried}: {value:.4f}, {run['seconds']:.0f} s", flush=True)
        settings = max(grid, key=lambda point: point["held_out"])["settings"]
    return grid


def _sample_users(log: Interactions, size: int | None) -> Interactions:
    queries, query_of_event = log.queries()
    num_users = len(queries[log.query_key])
    places = np.random.default_rng(HELD_OUT["seed"]).permutation(num_users)
    return log.take(places[query_of_event] < (num_users if size is None else size))


def _load(data: str, seed: int) -> tuple[RunConfig, RetrievalData]:
    path = HERE / "configs" / f"{BENCHMARKS[data].config}.yaml"
    config = load_config(path, [f"train.seed={seed}"])
    return config, load_data(config)


def _train_and_measure(
    method: str, config: RunConfig, log: RetrievalData, settings: Settings, seed: int
) -> dict[str, Any]:
    begin = time.perf_counter()
    options = {**settings, "sizes": _sizes(config)} if method.startswith("tfrs") else settings
    model = MODELS[method](log.train, log.items, options, seed)
    seconds = time.perf_counter() - begin
    metrics = measure(model, log, ks=config.evaluation.ks).metrics
    return {"seed": seed, "data": log.name, "test": metrics, "seconds": seconds}


def _sizes(config: RunConfig) -> dict[str, Any]:
    return config.model.model_dump(include={"embedding_dim", "hidden", "output_dim"})


def _describe(
    method: str, data: str, config: RunConfig, grid: list[dict[str, Any]], chosen: Settings
) -> dict[str, Any]:
    parts = config.model_dump()
    towers = {"towers": _sizes(config)} if method.startswith("tfrs") else {}
    users = BENCHMARKS[data].sample.get(method, "all")
    chosen_by = {"metric": BENCHMARKS[data].criterion, "users": users, **HELD_OUT}
    return {
        "method": METHODS[method].source,
        "data": parts["data"],
        **towers,
        "evaluation": parts["evaluation"],
        "chosen": chosen,
        "chosen_by": chosen_by,
        "grid": grid,
    }


if __name__ == "__main__":
    main()
