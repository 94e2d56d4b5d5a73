"""From configurations to the numbers of the report."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

import tfrs_negatives
from tfrs_negatives.compare.diagnostics import count_histogram, liked_popularity, look_into
from tfrs_negatives.compare.report import write_report
from tfrs_negatives.compare.runs import RunRecord, finish_runs, flatten, read_run, run_folders
from tfrs_negatives.compare.statistics import (
    SIGNIFICANCE,
    holm,
    paired_test,
    spread,
    user_differences,
)
from tfrs_negatives.compare.variants import Variants, check_variants, with_seed
from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.data import RetrievalData
from tfrs_negatives.evaluation import MostPopular, RandomRanking, evaluate
from tfrs_negatives.model.retrieval_model import RetrievalModel
from tfrs_negatives.runs.config import RunConfig
from tfrs_negatives.runs.train import protocol

Results = dict[str, Any]


def compare(
    variants: Variants,
    *,
    folder: str | Path,
    seeds: int = 3,
    baseline: str | None = None,
    metric: str | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Results:
    """Trains every variant with every seed and writes a report of which one to choose.

    What is complete from an earlier call is not trained again, and what was interrupted goes on.

    Args:
        variants: name -> configuration, see `check_variants`.
        folder: gets `report.html`, `results.json`, `plots/` and `runs/`.
        seeds: how many; they are 0, 1, ...
        baseline: the variant that the others are tested against; None is the first.
        metric: what the best is chosen by, `recall_at_k` or `ndcg_at_k` of one of the
            configuration's `evaluation.ks`; None is the recall at the smallest.
        overwrite: whether runs in the folder that have other configurations may be replaced.
        progress: whether to show bars.

    Returns:
        What `results.json` holds: `data`, `metric`, `k`, `ks`, `seeds`, `baseline`, `date` and
        `versions`; `recommendation` with the `best` variant, those `not_worse` and whether it
        `beats_popular`; `variants`, a record each of `name`, `settings`, `metrics` and
        `seconds_per_epoch` as mean, std and values over the seeds, `curve` and `diagnostics`;
        `references`, the same of two rankings without training; `comparisons`, the tests.

    Raises:
        InputError: if the variants cannot be compared, an argument is unknown or out of range, or
            a run cannot be trained.
    """
    check_variants(variants)
    config = next(iter(variants.values()))
    baseline, metric = _checked(variants, seeds, baseline, metric)
    folder, of_seeds, diagnostics = Path(folder), [], {}
    for seed, data in finish_runs(
        variants, seeds=seeds, folder=folder, overwrite=overwrite, progress=progress
    ):
        of_seeds.append(_look_at(data, config, seed))
        if seed == 0:
            folders = run_folders(variants, 0, folder)
            diagnostics = {name: look_into(run, data) for name, run in folders.items()}
    runs = _read_runs(variants, seeds, folder, metric)
    references = _reference_records(of_seeds)
    results = {
        **_head(config, seeds, baseline, metric),
        "data": _data_record(of_seeds, config),
        **judge(runs, references, baseline=baseline, metric=metric),
        "variants": _variant_records(variants, runs, diagnostics),
        "references": references,
    }
    write_report(results, folder)
    return results


def summary_rows(results: Results) -> list[Results]:
    """Returns a record of means per ranking without training and per variant, for a terminal."""
    shown = [results["metric"], *(f"{n}_at_{results['k']}" for n in ("tail_recall", "coverage"))]
    return [
        {
            "variant": record["name"],
            **{name: record["metrics"].get(name, {}).get("mean") for name in shown},
            "s/epoch": record.get("seconds_per_epoch", {}).get("mean"),
        }
        for record in (*results["references"], *results["variants"])
    ]


def _checked(
    variants: Variants, seeds: int, baseline: str | None, metric: str | None
) -> tuple[str, str]:
    """Returns baseline and metric, chosen where they are None."""
    if seeds < 1:
        raise bad_input("seeds", "at least 1", seeds)
    names = list(variants)
    if baseline is not None and baseline not in names:
        raise bad_input("baseline", f"one of {names}", repr(baseline))
    ks = sorted(set(variants[names[0]].evaluation.ks))
    known = [f"{name}_at_{k}" for name in ("recall", "ndcg") for k in ks]
    if metric is not None and metric not in known:
        raise bad_input("metric", f"one of {known}", repr(metric))
    return baseline or names[0], metric or known[0]


def _head(config: RunConfig, seeds: int, baseline: str, metric: str) -> Results:
    libraries = ("tensorflow", "tensorflow-recommenders")
    return {
        "metric": metric,
        "k": int(metric.rpartition("_")[2]),
        "ks": sorted(set(config.evaluation.ks)),
        "seeds": list(range(seeds)),
        "baseline": baseline,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "versions": {
            "tfrs-negatives": tfrs_negatives.__version__,
            **{name: importlib.metadata.version(name) for name in libraries},
            "python": platform.python_version(),
        },
    }


# ------------------------------------------------------------------ the data


def _look_at(data: RetrievalData, config: RunConfig, seed: int) -> Results:
    """What the data of one seed are, and what two rankings without training find in them."""
    options = protocol(config, data)
    counts = data.train.item_counts(data.items)
    rankings: dict[str, RetrievalModel] = {
        "most popular": MostPopular(data.items, counts),
        "random": RandomRanking(data.items, seed),
    }
    return {
        "name": data.name,
        "training_events": len(data.train),
        "test_events": len(data.test),
        "queries": _count_queries(data),
        "items": len(data.items),
        "popularity": count_histogram(counts),
        "liked_popularity": liked_popularity(data, exclude=options["exclude"]),
        "references": {
            name: evaluate(ranking, data.test, **options).metrics
            for name, ranking in rankings.items()
        },
    }


def _count_queries(data: RetrievalData) -> int:
    parts = (data.train, data.test)
    if data.train.query_key is None:
        return sum(len(part) for part in parts)
    columns = [part.query_features[data.train.query_key] for part in parts]
    return len(np.unique(np.concatenate(columns)))


def _data_record(of_seeds: Sequence[Results], config: RunConfig) -> Results:
    """The facts of the first seed, and what is liked over all of them."""
    facts = {name: value for name, value in of_seeds[0].items() if name != "references"}
    cut = config.data.model_dump(include={"split", "test_fraction", "min_rating"})
    liked = _over_seeds([record["liked_popularity"] for record in of_seeds])
    seen = {"exclude_seen": config.evaluation.exclude_seen}
    return {**facts, **cut, **seen, "liked_popularity": liked}


def _reference_records(of_seeds: Sequence[Results]) -> list[Results]:
    return [
        {"name": name, "metrics": _metrics([record["references"][name] for record in of_seeds])}
        for name in of_seeds[0]["references"]
    ]


# ------------------------------------------------------------------ the variants


def _read_runs(
    variants: Variants, seeds: int, folder: Path, metric: str
) -> dict[str, list[RunRecord]]:
    """Returns the runs of each variant, one per seed."""
    folders = [run_folders(variants, seed, folder) for seed in range(seeds)]
    return {name: [read_run(of_seed[name], metric) for of_seed in folders] for name in variants}


def _variant_records(
    variants: Variants, runs: Mapping[str, Sequence[RunRecord]], diagnostics: Mapping[str, Results]
) -> list[Results]:
    settings = _differing(variants)
    return [
        {
            "name": name,
            "settings": settings[name],
            "metrics": _metrics([run.metrics for run in own]),
            "seconds_per_epoch": _over_seeds([run.seconds_per_epoch for run in own]),
            "curve": [
                {"epoch": epoch, **_over_seeds([run.curve.get(epoch) for run in own])}
                for epoch in sorted(own[0].curve)
            ],
            "diagnostics": diagnostics[name],
        }
        for name, own in runs.items()
    ]


def _differing(variants: Variants) -> dict[str, Results]:
    """Returns the keys in which not all variants agree, and the value of each."""
    flat = {name: flatten(with_seed(config, 0)) for name, config in variants.items()}
    # Some keys only some of them read.
    keys = dict.fromkeys(key for values in flat.values() for key in values)
    shown = [k for k in keys if len({json.dumps(values.get(k)) for values in flat.values()}) > 1]
    return {name: {key: values.get(key) for key in shown} for name, values in flat.items()}


def _metrics(of_seeds: Sequence[Mapping[str, float]]) -> dict[str, Results]:
    # A slice of popularity may be empty with one seed and not with another.
    names = dict.fromkeys(name for metrics in of_seeds for name in metrics)
    return {name: _over_seeds([metrics.get(name) for metrics in of_seeds]) for name in names}


def _over_seeds(values: Sequence[float | None]) -> Results:
    return {**spread(values), "values": list(values)}


# ------------------------------------------------------------------ the judgement


def judge(
    runs: Mapping[str, Sequence[RunRecord]],
    references: Sequence[Results],
    *,
    baseline: str,
    metric: str,
) -> Results:
    """Tests the variants against each other and says which to choose.

    Args:
        runs: name -> runs, one per seed.
        references: the rankings without training, the most popular items first.
        baseline: the variant that the others are tested against.
        metric: what the best is chosen by.

    Returns:
        `recommendation` and `comparisons`, see `compare`.
    """
    means = {
        name: float(np.mean([run.metrics[metric] for run in own])) for name, own in runs.items()
    }
    best = max(means, key=means.__getitem__)
    comparisons = _compare_pairs(runs, best, baseline)
    worse = [
        c["second"]
        for c in comparisons
        if c["first"] == best and c["p_holm"] < SIGNIFICANCE and c["mean_difference"] > 0
    ]
    popular = references[0]["metrics"][metric]["mean"]
    return {
        "recommendation": {
            "best": best,
            "not_worse": [name for name in runs if name != best and name not in worse],
            "beats_popular": means[best] > popular,
        },
        "comparisons": comparisons,
    }


def _compare_pairs(
    runs: Mapping[str, Sequence[RunRecord]], best: str, baseline: str
) -> list[Results]:
    """Tests each against the baseline and the best against each; what is both is tested once."""
    pairs = [(best, name) for name in runs if name != best]
    if best != baseline:
        pairs = [(name, baseline) for name in runs if name not in (best, baseline)] + pairs
    scores = {name: [run.scores for run in own] for name, own in runs.items()}
    tests = [
        (pair, paired_test(user_differences(*(scores[name] for name in pair)))) for pair in pairs
    ]
    found = [(pair, test) for pair, test in tests if test is not None]
    corrected = holm([test.p for _, test in found])
    return [
        {"first": first, "second": second, **asdict(test), "p_holm": p}
        for ((first, second), test), p in zip(found, corrected, strict=True)
    ]
