"""`tfrs-negatives recommend`: a query to the items of a run's index."""

from __future__ import annotations

from typing import Annotated

import typer

from tfrs_negatives.cli.common import AsJson, RunFolder, print_json


def recommend(
    run: RunFolder,
    query: Annotated[str, typer.Argument(help="Id of a query of the training log, a user.")],
    k: Annotated[int | None, typer.Option("--k", "-k", help="How many items; 10.")] = None,
    as_json: AsJson = False,
) -> None:
    """Ask the index of a run what it recommends."""
    from tfrs_negatives.runs.train import recommend as ask

    records = ask(run, [query], k=k)[query]
    if as_json:
        print_json(records)
        return
    from tfrs_negatives.runs.progress import print_records

    print_records(records, title=f"for {query}")
