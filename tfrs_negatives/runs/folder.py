"""The folder of a run: unfinished under a hidden name, and in its place once it is complete.

While `runs/first` is trained, `runs/.first.unfinished` holds the resolved `config.yaml`, the
`history.csv` and the `checkpoints/`. It stays when the process is interrupted or killed.
"""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np

from tfrs_negatives.core.errors import InputError, bad_input
from tfrs_negatives.core.files import locked, make_folder, put_in_place, remove_folder, write_text
from tfrs_negatives.data import RetrievalData
from tfrs_negatives.runs import files
from tfrs_negatives.runs.config import RunConfig, load_config

logger = logging.getLogger("tfrs_negatives")


def unfinished_of(folder: Path) -> Path:
    """Returns where a run is while it is not complete.

    Example:
        >>> unfinished_of(Path("runs/first"))
        PosixPath('runs/.first.unfinished')
    """
    return folder.parent / f".{folder.name}.unfinished"


@contextmanager
def begin_run(folder: Path, config: RunConfig, *, overwrite: bool) -> Iterator[Path]:
    """Makes the unfinished folder of a new run; at the end of the block it gets its name.

    Where the block fails, the unfinished folder stays if there is a checkpoint to go on from, and
    else nothing stays behind. A run that is to be replaced stays until the new one is complete.

    Args:
        folder: the name of the run.
        config: what it holds from the beginning.
        overwrite: whether a run, complete or not, may be replaced.

    Yields:
        The unfinished folder.

    Raises:
        InputError: if there is something at `folder` that may not be replaced, an unfinished run,
            or the folder cannot be written.
    """
    work = unfinished_of(folder)
    _check_replaceable(folder, may_be_run=overwrite)
    if work.exists():
        if not overwrite:
            rule = "a new name; this run is unfinished: --resume goes on, --overwrite begins anew"
            raise bad_input("run", rule, folder)
        _discard(work)
    made = make_folder(work, argument="run")
    write_text(work / files.CONFIG, config.with_absolute_paths().to_yaml())
    with _locked(work), _completed(work, folder, made):
        yield work


@contextmanager
def reopen_run(folder: Path) -> Iterator[tuple[Path, RunConfig]]:
    """Goes on with the unfinished folder of a run; at the end of the block it gets its name.

    Args:
        folder: the name of the run.

    Yields:
        The unfinished folder and its configuration.

    Raises:
        InputError: if there is no unfinished run, another process is training it, or it is damaged.
    """
    work = unfinished_of(folder)
    if not (work / files.CONFIG).is_file():
        found = f"{folder}, which is complete" if (folder / files.CONFIG).is_file() else work
        raise bad_input("run", f"an unfinished run, with its {files.CONFIG}", found)
    # Only `--overwrite` begins a run whose name is taken.
    _check_replaceable(folder, may_be_run=True)
    with _locked(work), _completed(work, folder, []):
        yield work, load_config(work / files.CONFIG)


def is_trained(work: Path) -> bool:
    """Returns whether an unfinished run lacks nothing but its name: metrics.json comes last."""
    return (work / files.METRICS).is_file()


def check_log(work: Path, data: RetrievalData) -> None:
    """Remembers what a run is trained on, or compares with what it was begun on.

    Args:
        work: the unfinished folder.
        data: the log, cut into training and test.

    Raises:
        InputError: if the run was begun on another log.
    """
    parts = {"training": data.train.item_ids, "test": data.test.item_ids, "items": data.items.ids}
    found = {f"{name} rows": len(column) for name, column in parts.items()}
    found |= {f"{name} checksum": _checksum(column) for name, column in parts.items()}
    path = work / files.LOG
    if not path.is_file():
        path.parent.mkdir(exist_ok=True)
        write_text(path, json.dumps(found))
        return
    try:
        begun = json.loads(path.read_text())
    except ValueError as error:
        raise bad_input("run", f"{path.name} in JSON", f"{path}: {error}") from error
    if begun != found:
        changed = ", ".join(
            f"{n} {found[n]} for {begun.get(n)}" for n in found if found[n] != begun.get(n)
        )
        raise bad_input("data", "the log that the run was begun on", changed)


def _checksum(column: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(column).view(np.uint8).data)


def _check_replaceable(folder: Path, *, may_be_run: bool) -> None:
    if folder.exists() and not (may_be_run and (folder / files.CONFIG).is_file()):
        raise bad_input("run", "a new folder, or a run and --overwrite", folder)


@contextmanager
def _completed(work: Path, folder: Path, made: list[Path]) -> Iterator[None]:
    try:
        yield
        remove_folder(work / files.CHECKPOINTS)
        put_in_place(work, folder)
        (folder / files.LOCK).unlink()
    except BaseException as error:
        if not is_trained(work) and not list((work / files.CHECKPOINTS).glob("*.index")):
            remove_folder(work, made)
        elif not isinstance(error, InputError):
            logger.warning("`tfrs-negatives train --resume %s` goes on from here.", folder)
        raise


def _locked(work: Path) -> AbstractContextManager[None]:
    return locked(
        work / files.LOCK, argument="run", expected="a run that no other process is training"
    )


def _discard(work: Path) -> None:
    if (work / files.CONFIG).is_file():
        with _locked(work):
            remove_folder(work)
    remove_folder(work)
