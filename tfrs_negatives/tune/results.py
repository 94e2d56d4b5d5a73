"""The trials as records, `trials.csv` and `best.yaml`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.files import to_csv, write_text
from tfrs_negatives.runs.config import RunConfig
from tfrs_negatives.runs.progress import print_records
from tfrs_negatives.tune.space import Parameter

COMPLETE, PRUNED, FAILED = "complete", "pruned", "failed"
STATES = {
    TrialState.COMPLETE: COMPLETE,
    TrialState.PRUNED: PRUNED,
    TrialState.FAIL: FAILED,
    TrialState.WAITING: "waiting",
}


def done_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Returns the trials that were trained: complete ones and ones that were stopped early."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))


def refused_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Returns the trials whose settings do not work; not those whose process ended."""
    failed = study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
    return [trial for trial in failed if "reason" in trial.user_attrs]


def interrupted_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Returns the trials whose process ended."""
    failed = study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
    return [trial for trial in failed if "reason" not in trial.user_attrs]


def best_trial(study: optuna.Study) -> FrozenTrial:
    """Returns the complete trial with the highest value, the first of equals.

    Raises:
        InputError: if none is complete.
    """
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not complete:
        reasons = [str(row["reason"]) for row in trial_rows(study, [])]
        raise bad_input("space", "settings with which training ends well", reasons)
    return max(complete, key=lambda trial: trial.value or 0.0)


def trial_rows(study: optuna.Study, parameters: Sequence[Parameter]) -> list[dict[str, Any]]:
    """Returns a record per trial, in their order.

    Each has `number`, `state`, `value` (after the last epoch that was trained), `best_epoch` (where
    the metric was highest), `epochs` (after which it was last measured), the parameters, `seconds`
    and `reason`, why a trial is not complete. What a trial has not is None.
    """
    return [_row(trial, parameters) for trial in study.get_trials(deepcopy=False)]


def _row(trial: FrozenTrial, parameters: Sequence[Parameter]) -> dict[str, Any]:
    measured, reason = trial.intermediate_values, trial.user_attrs.get("reason")
    cut_off = trial.state == TrialState.FAIL and reason is None
    seconds = None if trial.duration is None or cut_off else trial.duration.total_seconds()
    return {
        "number": trial.number,
        "state": STATES[trial.state],
        "value": trial.value,
        "best_epoch": max(measured, key=lambda epoch: measured[epoch], default=None),
        "epochs": trial.last_step,
        **{p.key: trial.params.get(p.key) for p in parameters},
        "seconds": seconds and round(seconds, 1),
        "reason": "interrupted" if cut_off else reason,
    }


def write_results(
    study: optuna.Study,
    parameters: Sequence[Parameter],
    asked: RunConfig,
    out: Path,
    *,
    metric: str,
) -> None:
    """Writes `trials.csv`, and `best.yaml` once a trial is complete.

    Args:
        study: the trials.
        parameters: what they differ in.
        asked: the configuration that the best parameters are put into.
        out: the folder.
        metric: the name of the value.
    """
    rows = trial_rows(study, parameters)
    if rows:
        write_text(out / "trials.csv", to_csv(rows, rows[0]))
    if not any(row["state"] == COMPLETE for row in rows):
        return
    best = best_trial(study)
    config = asked.with_overrides([p.override(best.params[p.key]) for p in parameters])
    origin = f"# Trial {best.number}: {metric} {best.value:.4f} on the validation part.\n"
    write_text(out / "best.yaml", origin + config.to_yaml())


def shorten(value: Any) -> str:
    """Returns a cell of a table: numbers with four digits, nothing for None.

    Example:
        >>> shorten(0.000123456), shorten(4096), shorten("ngame"), shorten(None)
        ('0.0001235', '4096', 'ngame', '')
    """
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def print_trials(report: Mapping[str, Any]) -> None:
    """Prints what `run_tuning` returns as a table, the best first."""
    metric, hidden = report["metric"], {"state", "value", "reason"}
    rows = sorted(
        report["trials"], key=lambda row: (row["state"] != COMPLETE, -(row["value"] or 0))
    )
    table = [
        {
            "trial": shorten(row["number"]),
            "state": row["state"],
            metric: shorten(row["value"]),
            **{n: shorten(x) for n, x in row.items() if n not in {"number", *hidden}},
        }
        for row in rows
    ]
    print_records(table, title=f"{report['data']}: {len(rows)} trials, the best first")
