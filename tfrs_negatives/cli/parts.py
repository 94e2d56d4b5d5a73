"""What a composition can be made of: every family, its parts, and their arguments."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from typing import Annotated, Any, get_args

import typer

from tfrs_negatives.core.errors import bad_input


def list_parts(modules: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Describes all parts that have a name.

    Args:
        modules: more modules to import, whose parts then are among them.

    Returns:
        A record per part: `family`, `name`, `summary` (the first line of its docstring) and
        `arguments`, name -> type and default, without what the run provides.

    Raises:
        InputError: if a module cannot be imported.

    Example:
        >>> [hardest] = [record for record in list_parts() if record["name"] == "hardest"]
        >>> hardest["family"], hardest["arguments"]
        ('miner', {'k': 'int', 'by': 'logit or score = logit'})
    """
    from tfrs_negatives.core.part import Family, find_part, part_names
    from tfrs_negatives.model import recipes  # noqa: F401  (registered)
    from tfrs_negatives.step.arguments import signature_text

    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise bad_input("modules", "modules that can be imported", module) from error
    records = []
    for family in get_args(Family):
        for name in part_names(family):
            found = find_part(family, name)
            summary = (found.__doc__ or "").strip().partition("\n")[0]
            record = {"family": family, "name": name, "summary": summary}
            records.append({**record, "arguments": signature_text(found)})
    return records


def parts(
    modules: Annotated[
        list[str] | None, typer.Argument(help="Modules of your own to import before.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """List what the section `task` of a configuration can name, with arguments and defaults.

    Example: tfrs-negatives train --dry-run "task.miners=[{hardest: {k: 50}}]" task.loss=bpr

    The catalogue, the log and the counts of its items are given by the run, and not written. A
    class of your own is named by `package.module:Class`.
    """
    records = list_parts(modules or [])
    if as_json:
        typer.echo(json.dumps(records, indent=2))
        return
    for number, record in enumerate(records):
        if number == 0 or records[number - 1]["family"] != record["family"]:
            typer.echo(f"\n{record['family']}" if number else record["family"])
        typer.echo(f"  {record['name']}: {record['summary']}")
        for name, text in record["arguments"].items():
            typer.echo(f"      {name}: {text}")
