"""The folder of the trials: what they were begun with, and their journal.

`tune.yaml` holds the metric, the seed, the space and the configuration; `trials.jsonl` is the
journal of Optuna. One process at a time works in it, and a later one goes on.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.files import drafted, locked, write_text
from tfrs_negatives.runs.config import parse_yaml


@contextmanager
def open_folder(out: Path, record: Mapping[str, Any]) -> Iterator[None]:
    """Makes the folder of the trials, or goes on with it, and keeps other processes out.

    Args:
        out: the folder.
        record: name -> what decides the trials, in values that YAML has.

    Raises:
        InputError: if the folder holds something else or other trials, another process works in it,
            or it cannot be written.
    """
    path = out / "tune.yaml"
    if not out.exists():
        with drafted(out, argument="out") as draft:
            write_text(draft / path.name, yaml.safe_dump(dict(record), sort_keys=False))
    elif not path.is_file():
        raise bad_input("out", f"a new folder, or one with {path.name}", out)
    with locked(out / ".lock", argument="out", expected="trials that no other process is at"):
        _check_same(path, record)
        yield


def _check_same(path: Path, record: Mapping[str, Any]) -> None:
    try:
        before = dict(parse_yaml(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise bad_input("out", f"a readable {path.name}", path) from error
    changed = [name for name in {**before, **record} if before.get(name) != record.get(name)]
    if changed:
        found = ", ".join(f"{name} {record.get(name)} for {before.get(name)}" for name in changed)
        raise bad_input("out", "what was begun there, or another folder", found)


def open_study(path: Path) -> optuna.Study:
    """Opens the journal of the trials, which nobody else may write now.

    A trial that was running when its process ended is failed then.

    Args:
        path: the file; made where it is absent.

    Returns:
        The study, in which more is better.

    Raises:
        InputError: if the journal cannot be read.
    """
    _mend(path)
    try:
        storage = JournalStorage(JournalFileBackend(str(path)))
        study = optuna.create_study(
            storage=storage, study_name="tune", direction="maximize", load_if_exists=True
        )
    except (ValueError, KeyError) as error:
        raise bad_input("out", f"a readable {path.name}", f"{path}: {error}") from error
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
    return study


def _mend(path: Path) -> None:
    """Takes away what a process left that was killed while it wrote: its lock and half a line."""
    path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
    if path.is_file():
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
