"""Nothing half-written: files and folders are made under another name and then renamed."""

from __future__ import annotations

import csv
import ctypes
import io
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tfrs_negatives.core.errors import bad_input

_HERE = -100
_EXCHANGE = 2
"""`AT_FDCWD` and `RENAME_EXCHANGE` of Linux."""


def draft_of(path: Path) -> Path:
    """Returns the hidden name beside a path under which it is made.

    Example:
        >>> draft_of(Path("runs/first")).parent
        PosixPath('runs')
    """
    return path.with_name(f".{path.name}.draft-{os.getpid()}")


def write_text(path: Path, text: str) -> None:
    """Writes a text file that is there completely or not at all."""
    draft = draft_of(path)
    draft.write_text(text, encoding="utf-8")
    draft.rename(path)


def to_csv(rows: Iterable[Mapping[str, Any]], names: Iterable[str]) -> str:
    """Returns records as the text of a CSV file with these columns; what a record lacks is empty.

    Example:
        >>> to_csv([{"a": 1}, {"a": "x, y", "b": 2}], ["a", "b"]).splitlines()
        ['a,b', '1,', '"x, y",2']
    """
    text = io.StringIO()
    table = csv.DictWriter(text, list(names), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()


@contextmanager
def drafted(folder: Path, *, argument: str) -> Iterator[Path]:
    """Makes a folder that appears under its name only when the block has succeeded.

    Whatever fails, nothing stays behind, neither the draft nor folders above it that were made for
    it, and a folder that is to be replaced stays as it is.

    Args:
        folder: the name; what is there is replaced.
        argument: what the caller calls it, for the error.

    Yields:
        The draft, an empty folder beside it.

    Raises:
        InputError: if the folder cannot be written.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp()) / "run"
        >>> with drafted(folder, argument="run") as draft:
        ...     _ = (draft / "a.txt").write_text("done")
        >>> [path.name for path in folder.iterdir()]
        ['a.txt']
    """
    draft = draft_of(folder)
    made = make_folder(draft, argument=argument)
    try:
        yield draft
        put_in_place(draft, folder)
    except BaseException:
        remove_folder(draft, made)
        raise


@contextmanager
def drafted_file(path: Path, *, argument: str) -> Iterator[Path]:
    """The same for a file: it appears under its name only when the block has succeeded.

    Args:
        path: the name; a file that is there is replaced, and folders above are made.
        argument: what the caller calls it, for the error.

    Yields:
        The draft, a name beside it under which nothing is yet.

    Raises:
        InputError: if there is a folder of this name, or the file cannot be written.
    """
    if path.is_dir():
        raise bad_input(argument, "the name of a file", f"{path}, a folder")
    draft = draft_of(path)
    made = [parent for parent in path.absolute().parents if not parent.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.touch()
    except OSError as error:
        _remove_empty(made)
        found = f"{path}: {error.strerror}"
        raise bad_input(argument, "a file that can be written", found) from error
    try:
        yield draft
        draft.rename(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        _remove_empty(made)
        raise


def make_folder(folder: Path, *, argument: str) -> list[Path]:
    """Makes a folder, and returns the folders above it that were made for it, the nearest first.

    Raises:
        InputError: if it exists or cannot be made.
    """
    made = [parent for parent in folder.absolute().parents if not parent.exists()]
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        _remove_empty(made)
        found = f"{folder}: {error.strerror}"
        raise bad_input(argument, "a folder that can be written", found) from error
    return made


def remove_folder(folder: Path, made: Iterable[Path] = ()) -> None:
    """Removes a folder with what is in it, and folders above it that are empty then."""
    shutil.rmtree(folder, ignore_errors=True)
    _remove_empty(made)


def _remove_empty(folders: Iterable[Path]) -> None:
    with suppress(OSError):  # somebody else may have put something there
        for folder in folders:
            folder.rmdir()


def put_in_place(draft: Path, folder: Path) -> None:
    """Gives a finished folder its name; what had the name before goes once the new one is there.

    Where the system can, the two change places in one step, so that a reader, or a process that
    starts after this one was killed, finds one or the other.
    """
    if folder.exists() and _exchanged(draft, folder):
        remove_folder(draft)
        return
    old = folder.with_name(f".{folder.name}.old")
    if folder.exists():
        remove_folder(old)
        folder.rename(old)
    try:
        draft.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    # Also the one of a process that was killed between the two renames.
    remove_folder(old)


def _exchanged(first: Path, second: Path) -> bool:
    """Exchanges two names in one step; False where the system or the file system cannot."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):  # no Linux, or an old C library
        return False
    names = os.fsencode(first.absolute()), os.fsencode(second.absolute())
    return rename(_HERE, names[0], _HERE, names[1], _EXCHANGE) == 0


@contextmanager
def locked(path: Path, *, argument: str, expected: str) -> Iterator[None]:
    """Keeps other processes out while the block runs.

    Args:
        path: an empty file for this alone, made where it is absent. It stays, and keeps nobody
            out: the system gives the lock back when a process ends, however it ends.
        argument: what the error names.
        expected: what it asks for, where another process is inside.

    Raises:
        InputError: if another process is inside.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / ".lock"
        >>> with locked(path, argument="run", expected="a run of its own"):
        ...     print("alone")
        alone
    """
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise bad_input(argument, expected, path.parent) from error
    try:
        yield
    finally:
        lock.release()
