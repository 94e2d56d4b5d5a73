"""Trial after trial: draw settings, train on the reduced training part, measure on the validation
part, stop early what falls behind.
"""

from __future__ import annotations

import logging
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import MedianPruner
from optuna.samplers import BaseSampler, BruteForceSampler, TPESampler
from optuna_integration.tfkeras import TFKerasPruningCallback

from tfrs_negatives.compare.runs import flatten
from tfrs_negatives.core.errors import InputError, bad_input
from tfrs_negatives.core.files import remove_folder
from tfrs_negatives.data import RetrievalData
from tfrs_negatives.evaluation import MostPopular, evaluate
from tfrs_negatives.runs.config import RunConfig
from tfrs_negatives.runs.folder import unfinished_of
from tfrs_negatives.runs.train import load_data, protocol, train_run
from tfrs_negatives.tune.folder import open_folder, open_study
from tfrs_negatives.tune.plots import write_plots
from tfrs_negatives.tune.results import (
    COMPLETE,
    FAILED,
    INTERRUPTED,
    PRUNED,
    Row,
    best_row,
    rows_of,
    shorten,
    trial_rows,
    write_results,
)
from tfrs_negatives.tune.space import Parameter, check_space, parse_space, size_of

logger = logging.getLogger("tfrs_negatives.tune")

VALIDATION_FRACTION = 0.1
STARTUP_TRIALS = 5
"""Trials drawn blindly, and complete ones that the others are compared with before any stops."""
FIRST_EPOCH_TO_STOP = 2
MOST_FAILURES = 3
"""Where the first trials all fail, so many are enough."""


@dataclass(frozen=True)
class Tuning:
    """What all trials share.

    Attributes:
        asked: the configuration without what only trials need.
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
        """What may not change when the trials go on."""
        space = {f"space.{parameter.key}": parameter.rule for parameter in self.parameters}
        config = {f"config.{key}": value for key, value in flatten(self.base).items()}
        return {"metric": self.metric, "seed": self.seed, **space, **config}

    def settings(self, row: Row) -> tuple[Any, ...]:
        """Returns what was drawn for a trial."""
        return tuple(row[parameter.key] for parameter in self.parameters)


def run_tuning(
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
            on the whole training part), `plots/`.
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
    tuning = _prepare(config, space, out, trials=trials, metric=metric, seed=seed)
    data = load_data(tuning.base)
    baseline = _most_popular(tuning, data)
    with open_folder(out, tuning.record), _quiet_optuna():
        study = open_study(out / "trials.jsonl")
        study.pruner = MedianPruner(STARTUP_TRIALS, n_warmup_steps=FIRST_EPOCH_TO_STOP)
        with _advice(study):
            rows = _run_trials(tuning, study, data)
        best = best_row(rows)
        write_plots(study, out / "plots", metric=metric, baseline=baseline)
    return {
        "data": data.name,
        "metric": metric,
        "most_popular": baseline,
        "best": {name: value for name, value in best.items() if name != "reason"},
        "trials": rows,
    }


def _prepare(
    config: RunConfig, space: Sequence[str], out: Path, *, trials: int, metric: str, seed: int
) -> Tuning:
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
    return Tuning(asked, base, parameters, metric, trials, seed, out)


def _most_popular(tuning: Tuning, data: RetrievalData) -> float:
    """Measures the baseline, and finds out before the first trial whether there is the metric."""
    popular = MostPopular(data.items, data.train.item_counts(data.items))
    metrics = evaluate(popular, data.test, **protocol(tuning.base, data)).metrics
    if tuning.metric not in metrics:
        ending = tuning.metric[tuning.metric.rindex("_at_") :]
        names = [name for name in metrics if name.endswith(ending)]
        raise bad_input("metric", f"one of {', '.join(names)}", tuning.metric)
    return metrics[tuning.metric]


@contextmanager
def _advice(study: optuna.Study) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        if not isinstance(error, InputError):
            logger.warning(
                "%d trials are done; the same command goes on.",
                len(rows_of(trial_rows(study, []), COMPLETE, PRUNED)),
            )
        raise


@contextmanager
def _quiet_optuna() -> Iterator[None]:
    """Leaves out what Optuna says of each trial, and that it may change its plots some day."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


def _run_trials(tuning: Tuning, study: optuna.Study, data: RetrievalData) -> list[Row]:
    size = size_of(tuning.parameters)
    is_small = size <= tuning.trials
    if is_small:
        logger.info("the space has only %d settings: each is tried once", size)
        _repeat_interrupted(tuning, study)
    _remove_run(tuning)
    while True:
        rows = trial_rows(study, tuning.parameters)
        write_results(rows, tuning.parameters, tuning.asked, tuning.out, metric=tuning.metric)
        if _is_done(tuning, rows, size):
            return rows
        study.sampler = _sampler(tuning, len(rows), is_small=is_small)
        study.optimize(
            lambda trial: _measure(tuning, trial, data),
            n_trials=1,
            catch=(InputError,),
            # Keras models are reference cycles; the tables of two would be in memory otherwise.
            gc_after_trial=True,
        )
        logger.info("%s", _line(tuning, trial_rows(study, tuning.parameters)))


def _repeat_interrupted(tuning: Tuning, study: optuna.Study) -> None:
    """Queues what a process was at when it ended: the sampler would take it for tried.

    What is in the queue already is of a process that ended before it began with it.
    """
    rows = trial_rows(study, tuning.parameters)
    tried = {tuning.settings(row) for row in rows if row["state"] != INTERRUPTED}
    for row in rows_of(rows, INTERRUPTED):
        if tuning.settings(row) not in tried and not rows_of(rows, "waiting"):
            study.enqueue_trial({p.key: row[p.key] for p in tuning.parameters})


def _is_done(tuning: Tuning, rows: list[Row], size: float) -> bool:
    """Returns whether there are enough trials, or all settings are tried.

    Raises:
        InputError: if the first settings all do not work.
    """
    done, failed = rows_of(rows, COMPLETE, PRUNED), rows_of(rows, FAILED)
    if not done and len(failed) >= MOST_FAILURES:
        raise InputError(failed[-1]["reason"])
    if len(done) >= tuning.trials or len(failed) >= max(MOST_FAILURES, tuning.trials):
        return True
    return len({tuning.settings(row) for row in [*done, *failed]}) >= size


def _sampler(tuning: Tuning, number: int, *, is_small: bool) -> BaseSampler:
    # One for each trial: that of a process which goes on would begin again with the draws that
    # the first process began with.
    seed = int(np.random.SeedSequence([tuning.seed, number]).generate_state(1)[0])
    if is_small:
        return BruteForceSampler(seed)
    return TPESampler(n_startup_trials=STARTUP_TRIALS, seed=seed)


def _line(tuning: Tuning, rows: list[Row]) -> str:
    """What became of the last trial."""
    last, done = rows[-1], len(rows_of(rows, COMPLETE, PRUNED))
    best = max((row["value"] for row in rows_of(rows, COMPLETE)), default=None)
    settings = " ".join(f"{p.key}={shorten(last[p.key])}" for p in tuning.parameters)
    found = last["reason"] or f"{tuning.metric} {shorten(last['value'])}"
    return (
        f"trial {last['number']}, {last['state']}: {found}; best {shorten(best) or 'none'}; "
        f"{done} of {tuning.trials} done; {last['seconds']:.0f} s; {settings}"
    )


def _measure(tuning: Tuning, trial: optuna.Trial, data: RetrievalData) -> float:
    """Trains with what is drawn, returns the metric, and remembers why where there is none."""
    try:
        return _train(tuning, trial, data)
    except Exception as error:
        trial.set_user_attr("reason", " ".join(str(error).split()) or type(error).__name__)
        raise
    finally:
        _remove_run(tuning)


def _train(tuning: Tuning, trial: optuna.Trial, data: RetrievalData) -> float:
    config = tuning.base.with_overrides([p.draw(trial) for p in tuning.parameters])
    watch = WatchTrial(trial, f"val_{tuning.metric}")
    with _quiet():
        metrics = train_run(config, tuning.out / "trial", data=data, callbacks=[watch])
    value = float(metrics["test"][tuning.metric])
    if not math.isfinite(value):
        raise optuna.TrialPruned(f"{tuning.metric} is {value}")
    if config.train.epochs % (config.evaluation.every_epochs or 1):
        trial.report(value, config.train.epochs)
    return value


class WatchTrial(TFKerasPruningCallback):
    """Optuna's callback, where an epoch was evaluated; ends what diverges, too.

    Args:
        trial: where the metric is reported.
        monitor: its name in the logs.

    Raises:
        optuna.TrialPruned: out of `fit`.
    """

    def __init__(self, trial: optuna.Trial, monitor: str) -> None:
        super().__init__(trial, monitor)
        self.monitor = monitor

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Ends training once the loss is not a number; before its vectors are evaluated."""
        loss = (logs or {}).get("loss", 0.0)
        if not math.isfinite(loss):
            raise optuna.TrialPruned(f"the loss is {loss}")

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Reports, and ends what falls behind; epochs are counted from 1."""
        if self.monitor in (logs or {}):
            super().on_epoch_end(epoch + 1, logs)


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


def _remove_run(tuning: Tuning) -> None:
    run = tuning.out / "trial"
    for folder in (run, unfinished_of(run)):
        remove_folder(folder)
