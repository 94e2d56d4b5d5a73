"""What commands share: options of one name, and how results are printed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from tfrs_negatives.core.errors import bad_input

RunFolder = Annotated[Path, typer.Argument(help="A run folder, as `train` writes it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is already there.")]


def report(record: dict[str, Any], as_json: bool, *, wrote: Path) -> None:
    """Prints a record, and the file or folder that a command wrote."""
    if as_json:
        print_json({**record, "wrote": str(wrote)})
        return
    from tfrs_negatives.runs.progress import print_tree

    print_tree(record)
    typer.echo(f"wrote {wrote}")


def print_json(record: Any) -> None:
    """Prints a record for machines."""
    typer.echo(json.dumps(record, indent=2))


@contextmanager
def importing(command: str, *, extra: str) -> Iterator[None]:
    """Says what to install where an import of the block fails that only some commands need."""
    try:
        yield
    except ModuleNotFoundError as error:
        if str(error.name).startswith("tfrs_negatives"):
            raise
        needed = f"what `pip install 'tfrs-negatives[{extra}]'` installs"
        raise bad_input(command, needed, f"no {error.name}") from error
