"""Nothing half-written: files and folders are made under another name and then renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tfrs_negatives.types import bad_input


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
    made = [parent for parent in folder.absolute().parents if not parent.exists()]
    draft = draft_of(folder)
    try:
        _make(draft, folder, argument)
        yield draft
        _put_in_place(draft, folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        with suppress(OSError):  # somebody else may have put something there
            for parent in made:
                parent.rmdir()
        raise


def _make(draft: Path, folder: Path, argument: str) -> None:
    try:
        draft.mkdir(parents=True)
    except OSError as error:
        found = f"{folder}: {error.strerror}"
        raise bad_input(argument, "a folder that can be written", found) from error


def _put_in_place(draft: Path, folder: Path) -> None:
    # What was there goes only once the new one is there; between two renames there is neither.
    if not folder.exists():
        draft.rename(folder)
        return
    old = draft.with_suffix(".old")
    folder.rename(old)
    try:
        draft.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    shutil.rmtree(old)
