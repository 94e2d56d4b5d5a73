"""Nothing half-written: files and folders are made under another name and then renamed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


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


def put_in_place(draft: Path, folder: Path) -> None:
    """Renames a finished folder to its name; what was there goes only once the new one is there.

    Args:
        draft: the finished folder, beside `folder`.
        folder: its name. Between two renames there is a moment without either.
    """
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
