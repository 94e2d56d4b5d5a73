"""Trial after trial: draw settings, train on the reduced training part, measure on the validation
part, stop early what falls behind.
"""

from __future__ import annotations

import gc
import logging
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import tensorflow as tf
from optuna.pruners import MedianPruner
from optuna.samplers import TPESampler
from optuna.trial import TrialState

from tfrs_negatives.core.errors import InputError, bad_input
from tfrs_negatives.core.files import remove_folder
from tfrs_negatives.data import RetrievalData
from tfrs_negatives.evaluation import MostPopular, evaluate
from tfrs_negatives.runs.config import RunConfig
from tfrs_negatives.runs.folder import unfinished_of
from tfrs_negatives.runs.train import load_data, protocol, train_run
from tfrs_negatives.tune.folder import open_folder, open_study
from tfrs_negatives.tune.plot import write_plot
from tfrs_negatives.tune.results import (
    COMPLETE,
    PRUNED,
    best_trial,
    done_trials,
    refused_trials,
    shorten,
    trial_rows,
    write_results,
)
from tfrs_negatives.tune.space import Parameter, check_space, grid_of, parse_space

logger = logging.getLogger("tfrs_negatives.tune")

VALIDATION_FRACTION = 0.1
STARTUP_TRIALS = 5
"""Trials drawn blindly, and complete ones that the others are compared with before any stops."""
FIRST_EPOCH_TO_STOP = 2
MOST_FAILURES = 3
"""A search whose first trials all fail ends after so many."""


@dataclass(frozen=True)
class Search:
    """What all trials share.

    Attributes:
        asked: the configuration without what only a search needs.
        base: the same on the validation part, measured as training goes on.
        parameters: the space.
        metric: the name of a metric of `Evaluation`; more is better.
        trials: how many are to be complete or stopped early.
        seed: of the draws.
        out: the folder.
    """

    asked: RunConfig
    base: RunConfig
    parameters: list[Parameter]
    metric: str
    trials: int
    seed: int
    out: Path

    @property
    def record(self) -> dict[str, Any]:
        """What may not change when the search goes on."""
        space = {parameter.key: parameter.rule for parameter in self.parameters}
        config = self.base.model_dump()
        return {"metric": self.metric, "seed": self.seed, "space": space, "config": config}


def run_search(
    config: RunConfig,
    space: Sequence[str],
    out: Path,
    *,
    trials: int = 20,
    metric: str = "recall_at_20",
    seed: int = 0,
) -> dict[str, Any]:
    """Chooses settings on a validation part; the test part is never looked at.

    Called again with the same arguments it goes on where it ended, however it ended; with more
    `trials` it adds to them. Trials leave no run folders.

    Args:
        config: what all trials share. Where it names no `data.validation_fraction`, a tenth of the
            training events is held out.
        space: see `parse_space`.
        out: the folder: `trials.jsonl` (Optuna's journal), `trials.csv`, `best.yaml` (for `train`,
            on the whole training part), `report.png`.
        trials: how many are to be complete or stopped early.
        metric: what is to be high after the last epoch, `recall_at_20`.
        seed: of the draws; each trial trains with the seed of the configuration.

    Returns:
        `data`, `metric`, `most_popular` (the metric of that baseline), `trials`, a record each with
        the columns of `trials.csv`, and `best`, the record of the best.

    Raises:
        InputError: if an argument is wrong, the folder holds something else, the first three trials
            fail, or none is complete.

    Source:
        Bergstra et al., Algorithms for Hyper-Parameter Optimization, NeurIPS 2011 (the sampler);
        Golovin et al., Google Vizier, KDD 2017 (the median rule).
    """
    search = _prepare(config, space, out, trials=trials, metric=metric, seed=seed)
    data = load_data(search.base)
    baseline = _most_popular(search, data)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with open_folder(out, search.record):
        study = open_study(out / "trials.jsonl")
        study.pruner = MedianPruner(STARTUP_TRIALS, n_warmup_steps=FIRST_EPOCH_TO_STOP)
        with _advice(study):
            _run_trials(search, study, data)
        rows = trial_rows(study, search.parameters)
        best = rows[best_trial(study).number]
        write_plot(rows, search.parameters, out / "report.png", metric=metric, baseline=baseline)
    return {
        "data": data.name,
        "metric": metric,
        "most_popular": baseline,
        "best": {name: value for name, value in best.items() if name != "reason"},
        "trials": rows,
    }


def _prepare(
    config: RunConfig, space: Sequence[str], out: Path, *, trials: int, metric: str, seed: int
) -> Search:
    parameters = parse_space(space)
    found = re.fullmatch(r"[a-z_]+_at_([1-9]\d*)", metric)
    if found is None:
        raise bad_input("metric", "a metric and a length of list, such as recall_at_20", metric)
    for name, value, least in (("trials", trials, 1), ("seed", seed, 0)):
        if value < least:
            raise bad_input(name, f"at least {least}", value)
    ks = sorted({*config.evaluation.ks, int(found[1])})
    fraction = config.data.validation_fraction or VALIDATION_FRACTION
    shown = [f"evaluation.ks={ks}", "data.validation_fraction=null"]
    asked = config.with_absolute_paths().with_overrides(shown)
    base = asked.with_overrides(
        [
            f"data.validation_fraction={fraction}",
            f"evaluation.every_epochs={config.evaluation.every_epochs or 1}",
            # A trial does not go on after a kill.
            "train.checkpoint_every_steps=null",
        ]
    )
    check_space(base, parameters)
    return Search(asked, base, parameters, metric, trials, seed, out)


def _most_popular(search: Search, data: RetrievalData) -> float:
    """Measures the baseline, and finds out before the first trial whether there is the metric."""
    popular = MostPopular(data.items, data.train.item_counts(data.items))
    metrics = evaluate(popular, data.test, **protocol(search.base, data)).metrics
    if search.metric not in metrics:
        ending = search.metric[search.metric.rindex("_at_") :]
        names = [name for name in metrics if name.endswith(ending)]
        raise bad_input("metric", f"one of {', '.join(names)}", search.metric)
    return metrics[search.metric]


@contextmanager
def _advice(study: optuna.Study) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        if not isinstance(error, InputError):
            logger.warning("%d trials are done; the same command goes on.", len(done_trials(study)))
        raise


def _run_trials(search: Search, study: optuna.Study, data: RetrievalData) -> None:
    grid = grid_of(search.parameters, at_most=search.trials)
    if grid is not None and len(grid) < search.trials:
        logger.info("the space has only %d settings: each is tried once", len(grid))
    _remove_run(search)
    while True:
        write_results(study, search.parameters, search.asked, search.out, metric=search.metric)
        done, refused = done_trials(study), refused_trials(study)
        if not done and len(refused) >= MOST_FAILURES:
            raise InputError(refused[-1].user_attrs["reason"])
        if len(done) >= search.trials or len(refused) >= max(MOST_FAILURES, search.trials):
            return
        if grid is not None and not _queue(search, study, grid):
            return
        _run_trial(search, study, _draw(search, study), data)


def _queue(search: Search, study: optuna.Study, grid: list[dict[str, Any]]) -> bool:
    """Puts settings that were not tried in the queue; returns False where there are none."""
    if study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        return True  # of a process that was killed before it began with them
    tried = [trial.params for trial in [*done_trials(study), *refused_trials(study)]]
    left = [settings for settings in grid if settings not in tried]
    if left:
        study.enqueue_trial(left[_seed(search, study) % len(left)])
    return bool(left)


def _draw(search: Search, study: optuna.Study) -> optuna.Trial:
    # A sampler of its own for each trial: that of a search which goes on would begin again with
    # the draws that the first process began with.
    seed = _seed(search, study)
    study.sampler = TPESampler(n_startup_trials=STARTUP_TRIALS, seed=seed)
    return study.ask({p.key: p.distribution for p in search.parameters})


def _seed(search: Search, study: optuna.Study) -> int:
    number = len(study.get_trials(deepcopy=False))
    return int(np.random.SeedSequence([search.seed, number]).generate_state(1)[0])


def _run_trial(
    search: Search, study: optuna.Study, trial: optuna.Trial, data: RetrievalData
) -> None:
    try:
        study.tell(trial, _train(search, trial, data))
    except optuna.TrialPruned as stop:
        trial.set_user_attr("reason", str(stop))
        study.tell(trial, state=TrialState.PRUNED)
    except Exception as error:
        trial.set_user_attr("reason", " ".join(str(error).split()) or type(error).__name__)
        study.tell(trial, state=TrialState.FAIL)
        if not isinstance(error, InputError):
            raise
    finally:
        _remove_run(search)
        # Keras models are reference cycles; the tables of two would be in memory otherwise.
        gc.collect()
    logger.info("%s", _line(search, trial_rows(study, search.parameters)))


def _line(search: Search, rows: list[dict[str, Any]]) -> str:
    """What became of the last trial."""
    last = rows[-1]
    done = sum(row["state"] in (COMPLETE, PRUNED) for row in rows)
    best = max((row["value"] for row in rows if row["state"] == COMPLETE), default=None)
    settings = " ".join(f"{p.key}={shorten(last[p.key])}" for p in search.parameters)
    found = last["reason"] or f"{search.metric} {shorten(last['value'])}"
    return (
        f"trial {last['number']}, {last['state']}: {found}; best {shorten(best) or 'none'}; "
        f"{done} of {search.trials} done; {last['seconds']:.0f} s; {settings}"
    )


def _train(search: Search, trial: optuna.Trial, data: RetrievalData) -> float:
    config = search.base.with_overrides(
        [p.override(trial.params[p.key]) for p in search.parameters]
    )
    watch = WatchTrial(trial, search.metric)
    with _quiet():
        metrics = train_run(config, search.out / "trial", data=data, callbacks=[watch])
    value = float(metrics["test"][search.metric])
    if not math.isfinite(value):
        raise optuna.TrialPruned(f"{search.metric} is {value}")
    if config.train.epochs % (config.evaluation.every_epochs or 1):
        trial.report(value, config.train.epochs)
    return value


class WatchTrial(tf.keras.callbacks.Callback):
    """Reports the metric of each evaluation and ends what diverges or falls behind.

    Args:
        trial: where the metric is reported.
        metric: its name, without `val_`.

    Raises:
        optuna.TrialPruned: out of `fit`.
    """

    def __init__(self, trial: optuna.Trial, metric: str) -> None:
        super().__init__()
        self.trial, self.metric = trial, metric

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Ends training once the loss is not a number; before its vectors are evaluated."""
        loss = (logs or {}).get("loss", 0.0)
        if not math.isfinite(loss):
            raise optuna.TrialPruned(f"the loss is {loss}")

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Reports, and asks whether to go on where an epoch is left."""
        value = (logs or {}).get(f"val_{self.metric}")
        if value is None:
            return
        if not math.isfinite(value):
            raise optuna.TrialPruned(f"{self.metric} is {value}")
        self.trial.report(value, epoch + 1)
        if epoch + 1 < self.params["epochs"] and self.trial.should_prune():
            raise optuna.TrialPruned(f"below the median after epoch {epoch + 1}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Leaves out what each training says at its first step, and how an ended one would go on."""
    package = logging.getLogger("tfrs_negatives")
    level = package.level

    def no_advice(record: logging.LogRecord) -> bool:
        return "--resume" not in record.getMessage()

    package.setLevel(max(level, logging.WARNING))
    package.addFilter(no_advice)
    try:
        yield
    finally:
        package.removeFilter(no_advice)
        package.setLevel(level)


def _remove_run(search: Search) -> None:
    run = search.out / "trial"
    for folder in (run, unfinished_of(run)):
        remove_folder(folder)
