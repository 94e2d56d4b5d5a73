"""One run folder per variant and seed: trained where it is missing, and read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfrs_negatives.compare.statistics import QueryScores
from tfrs_negatives.compare.variants import Variants, folder_names, with_seed
from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.data import RetrievalData
from tfrs_negatives.runs import files
from tfrs_negatives.runs.checkpoints import read_history
from tfrs_negatives.runs.config import RunConfig, load_config
from tfrs_negatives.runs.folder import unfinished_of
from tfrs_negatives.runs.progress import EpochProgress
from tfrs_negatives.runs.tables import read_keyed
from tfrs_negatives.runs.train import load_data, resume_run, train_run

POINTS_PER_CURVE = 10


@dataclass(frozen=True)
class RunRecord:
    """What a run folder says.

    Attributes:
        metrics: name -> value of the final evaluation.
        seconds_per_epoch: None where an interruption left no whole epoch to measure.
        curve: epoch -> the compared metric there, the last one included.
        scores: the compared metric of each test query.
    """

    metrics: Mapping[str, float]
    seconds_per_epoch: float | None
    curve: Mapping[int, float]
    scores: QueryScores


def run_configs(variants: Variants, seed: int) -> dict[str, RunConfig]:
    """Returns the variants as they are trained: with the seed, and evaluated on the way.

    The evaluations during training change nothing but the learning curve.
    """
    configs = {}
    for name, config in variants.items():
        every = config.evaluation.every_epochs or max(1, config.train.epochs // POINTS_PER_CURVE)
        evaluation = config.evaluation.model_copy(update={"every_epochs": every})
        configs[name] = with_seed(config.model_copy(update={"evaluation": evaluation}), seed)
    return configs


def run_folders(variants: Variants, seed: int, folder: Path) -> dict[str, Path]:
    """Returns where the run of each variant goes."""
    slugs = folder_names(list(variants))
    return {name: folder / "runs" / slug / f"seed_{seed}" for name, slug in slugs.items()}


def finish_runs(
    variants: Variants, *, seeds: int, folder: Path, overwrite: bool, progress: bool
) -> Iterator[tuple[int, RetrievalData]]:
    """Trains all runs that are not complete, seed by seed.

    Args:
        variants: name -> configuration.
        seeds: how many.
        folder: where the comparison is kept.
        overwrite: whether runs of other configurations may be replaced.
        progress: whether to show bars.

    Yields:
        After all runs of a seed, the seed and its data.

    Raises:
        InputError: if there is a run of another configuration, or as `train_run`.
    """
    number, total = 0, seeds * len(variants)
    for seed in range(seeds):
        configs, folders = run_configs(variants, seed), run_folders(variants, seed, folder)
        # A random split goes by the seed, and so is the same for all variants.
        data = load_data(next(iter(configs.values())))
        for name, config in configs.items():
            number += 1
            label = f"{name}  seed {seed}  ({number}/{total})"
            bars = [EpochProgress(label=label)] if progress else []
            _finish_run(config, folders[name], data=data, overwrite=overwrite, callbacks=bars)
        yield seed, data


def _finish_run(
    config: RunConfig,
    folder: Path,
    *,
    data: RetrievalData,
    overwrite: bool,
    callbacks: list[EpochProgress],
) -> None:
    for place in (folder, unfinished_of(folder)):
        if not (place / files.CONFIG).is_file():
            continue
        other = _difference(config, load_config(place / files.CONFIG))
        if other is None and place == folder:
            return
        if other is None:
            resume_run(folder, callbacks=callbacks)
            return
        if not overwrite:
            rule = "the configurations that its runs have, or --overwrite to train those anew"
            raise bad_input("out", rule, f"{folder}, a run with {other}")
    train_run(config, folder, data=data, overwrite=overwrite, callbacks=callbacks)


def _difference(wanted: RunConfig, found: RunConfig) -> str | None:
    """Returns the first key of a run that is another than wanted, with both values."""
    ours, theirs = flatten(wanted), flatten(found)
    for key in {**ours, **theirs}:
        if ours.get(key) != theirs.get(key):
            return f"{key}={theirs.get(key)} and not {ours.get(key)}"
    return None


def flatten(config: RunConfig) -> dict[str, Any]:
    """Returns section.key -> value of all that is read.

    Example:
        >>> flatten(load_config())["train.batch_size"]
        2048
    """
    sections = config.model_dump()
    return {f"{s}.{key}": value for s, keys in sections.items() for key, value in keys.items()}


def read_run(folder: Path, metric: str) -> RunRecord:
    """Reads what the comparison needs of a complete run.

    Args:
        folder: the run.
        metric: the compared one, such as `recall_at_10`.

    Raises:
        InputError: if a file of the run is missing or damaged.
    """
    try:
        record = json.loads((folder / files.METRICS).read_text())
        lines = read_history(folder / files.HISTORY)
        if not lines:
            raise ValueError("no epoch")
    except (OSError, ValueError) as error:
        raise bad_input("run", f"a readable {files.METRICS} and {files.HISTORY}", folder) from error
    column = f"val_{metric}"
    curve = {int(line["epoch"]): float(line[column]) for line in lines if column in line}
    # The last epoch may not be one that was evaluated on the way.
    curve[len(lines)] = record["test"][metric]
    return RunRecord(
        record["test"], record["seconds_per_epoch"], curve, _read_scores(folder, metric)
    )


def _read_scores(folder: Path, metric: str) -> QueryScores:
    columns, key = read_keyed(folder / files.PER_QUERY)
    return QueryScores(columns[key] if key else None, columns[metric])
