"""`tfrs-negatives compare`: variants to a report of which one to choose."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tfrs_negatives.cli.common import AsJson, importing, report


def compare(
    configs: Annotated[list[Path], typer.Argument(help="YAML files, a variant each.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="For all variants.")
    ] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=V1,V2", help="A variant for each value; the product of several."),
    ] = None,
    seeds: Annotated[int, typer.Option(help="How many runs of each, with seeds 0, 1, ...")] = 3,
    out: Annotated[Path, typer.Option(help="Where report and runs go.")] = Path("runs/compare"),
    baseline: Annotated[
        str | None, typer.Option(help="The variant to test against; the first.")
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="recall_at_K or ndcg_at_K; recall at the smallest K.")
    ] = None,
    as_json: AsJson = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Train anew what has another configuration.")
    ] = False,
) -> None:
    """Train several variants with several seeds, and write a report of which one to choose.

    Example: tfrs-negatives compare mixed.yaml in_batch.yaml --grid model.temperature=0.05,0.1

    A variant is named after its file and its values of the grid. The same command goes on where it
    was interrupted. OUT/report.html needs no other file.
    """
    with importing("compare", extra="compare"):
        from tfrs_negatives.compare import compare as run
        from tfrs_negatives.compare import read_variants, summary_rows
    from tfrs_negatives.runs.progress import print_records

    results = run(
        read_variants(configs, overrides=overrides or [], grid=grid or []),
        folder=out,
        seeds=seeds,
        baseline=baseline,
        metric=metric,
        overwrite=overwrite,
        progress=True,
    )
    table, choice = summary_rows(results), results["recommendation"]
    page = out / "report.html"
    if as_json:
        report({**choice, "table": table}, as_json, wrote=page)
        return
    shown = [{n: "" if x is None else x for n, x in row.items()} for row in table]
    print_records(shown, title=f"{results['data']['name']}, mean over {seeds} seed(s)")
    others = ", ".join(choice["not_worse"]) or "none"
    report({"best": choice["best"], "not significantly worse": others}, as_json, wrote=page)
