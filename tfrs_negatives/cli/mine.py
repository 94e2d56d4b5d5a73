"""`tfrs-negatives mine`: a run to a file of hard negatives."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tfrs_negatives.cli.common import AsJson, Overwrite, RunFolder, report
from tfrs_negatives.runs import files


def mine(
    run: RunFolder,
    out: Annotated[
        Path | None, typer.Option(help="The Parquet file; RUN/hard_negatives.parquet.")
    ] = None,
    ranks: Annotated[
        tuple[int, int],
        typer.Option(metavar="LOW HIGH", help="Which ranks, 1 is the best item not chosen."),
    ] = (1, 100),
    relative_margin: Annotated[
        float | None, typer.Option(help="0.05: at most 95% of the mean score of the positives.")
    ] = None,
    num: Annotated[int, typer.Option(help="How many for each query, at most.")] = 4,
    choose: Annotated[str, typer.Option(help="top, or random among what is left.")] = "top",
    seed: Annotated[int, typer.Option(help="Of random choice.")] = 0,
    as_json: AsJson = False,
    overwrite: Overwrite = False,
) -> None:
    """Mine hard negatives: items that the model ranks high and the query has not chosen.

    Example: tfrs-negatives mine runs/first --ranks 20 120 --relative-margin 0.05

    For each query of the training log: what it has chosen is taken out, the
    19 best of the others are left alone (it may only not have seen them), and
    of the next 101 those that score at most 95% of its positives are kept. The
    best 4 of these are written. `tfn.NegativeTable` reads the file, and gives
    them to `tfn.Explicit` in training.
    """
    from dataclasses import asdict

    from tfrs_negatives.runs.progress import print_records
    from tfrs_negatives.runs.train import mine_run

    summary = mine_run(
        run,
        out=out,
        overwrite=overwrite,
        progress=not as_json,
        rank_range=ranks,
        relative_margin=relative_margin,
        num=num,
        choose=choose,
        seed=seed,
    )
    record = asdict(summary)
    if not as_json:
        print_records(summary.by_rule(), title="what became of the items that the index found")
        record = {name: record[name] for name in ("queries", "short", "empty", "seconds")}
    report(record, as_json, wrote=out or run / files.HARD_NEGATIVES)
