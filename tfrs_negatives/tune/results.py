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

COMPLETE, PRUNED, FAILED, INTERRUPTED = "complete", "pruned", "failed", "interrupted"
STATES = {
    TrialState.COMPLETE: COMPLETE,
    TrialState.PRUNED: PRUNED,
    TrialState.FAIL: FAILED,
    TrialState.WAITING: "waiting",
}
Row = dict[str, Any]


def trial_rows(study: optuna.Study, parameters: Sequence[Parameter]) -> list[Row]:
    """Returns a record per trial, in their order.

    Each has `number`; `state`, which is `failed` where settings do not work and `interrupted` where
    the process ended; `value` (after the last epoch that was trained), `best_epoch` (where the
    metric was highest), `epochs` (after which it was last measured), the parameters, `seconds` and
    `reason`, why a trial is not complete. What a trial has not is None.
    """
    return [_row(trial, parameters) for trial in study.get_trials(deepcopy=False)]


def _row(trial: FrozenTrial, parameters: Sequence[Parameter]) -> Row:
    measured, reason = trial.intermediate_values, trial.user_attrs.get("reason")
    cut_off = trial.state == TrialState.FAIL and reason is None
    seconds = None if trial.duration is None or cut_off else trial.duration.total_seconds()
    return {
        "number": trial.number,
        "state": INTERRUPTED if cut_off else STATES[trial.state],
        "value": trial.value,
        "best_epoch": max(measured, key=lambda epoch: measured[epoch], default=None),
        "epochs": trial.last_step,
        **{p.key: trial.params.get(p.key) for p in parameters},
        "seconds": seconds and round(seconds, 1),
        "reason": reason,
    }


def rows_of(rows: Sequence[Row], *states: str) -> list[Row]:
    """Returns the trials in one of these states."""
    return [row for row in rows if row["state"] in states]


def best_row(rows: Sequence[Row]) -> Row:
    """Returns the complete trial with the highest value, the first of equals.

    Raises:
        InputError: if none is complete.
    """
    complete = rows_of(rows, COMPLETE)
    if not complete:
        reasons = [row["reason"] for row in rows]
        raise bad_input("space", "settings with which training ends well", reasons)
    return max(complete, key=lambda row: row["value"])


def write_results(
    rows: Sequence[Row],
    parameters: Sequence[Parameter],
    asked: RunConfig,
    out: Path,
    *,
    metric: str,
) -> None:
    """Writes `trials.csv`, and `best.yaml` once a trial is complete.

    Args:
        rows: the trials.
        parameters: what they differ in.
        asked: the configuration that the best parameters are put into.
        out: the folder.
        metric: the name of the value.
    """
    if rows:
        write_text(out / "trials.csv", to_csv(rows, rows[0]))
    if not rows_of(rows, COMPLETE):
        return
    best = best_row(rows)
    config = asked.with_overrides([p.override(best[p.key]) for p in parameters])
    head = f"# Trial {best['number']}: {metric} {best['value']:.4f} on the validation part.\n"
    write_text(out / "best.yaml", head + config.to_yaml())


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
