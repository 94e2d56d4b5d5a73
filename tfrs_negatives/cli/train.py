"""`tfrs-negatives train`: a configuration to a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tfrs_negatives.cli.common import AsJson, Overwrite, report
from tfrs_negatives.core.errors import bad_input


def train(
    overrides: Annotated[
        list[str] | None, typer.Argument(help="section.key=value, over the configuration.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file; the defaults without.")] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder to write; runs/train.")] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Finish the run that was to go there.")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only print the configuration, the recipe as its parts."),
    ] = False,
    as_json: AsJson = False,
    overwrite: Overwrite = False,
) -> None:
    """Train a model and write its run folder.

    Example: tfrs-negatives train --out runs/ml100k data.source=ml-100k:ml-100k data.min_rating=3

    What the section `task` can be made of: tfrs-negatives parts

    A run that was interrupted or killed goes on from its last checkpoint:
    tfrs-negatives train --resume runs/ml100k
    """
    if resume is not None:
        if overrides or config or out or dry_run or overwrite:
            raise bad_input("resume", "no other option but --json: the run has its own", resume)
        _resume(resume, as_json)
        return
    from tfrs_negatives.runs.config import load_config

    resolved = load_config(config, overrides or [])
    if dry_run:
        typer.echo(resolved.to_yaml(), nl=False)
        return
    from tfrs_negatives.runs.progress import EpochProgress
    from tfrs_negatives.runs.train import train_run

    out = out or Path("runs/train")
    metrics = train_run(resolved, out, overwrite=overwrite, callbacks=[EpochProgress()])
    report(metrics, as_json, wrote=out)


def _resume(run: Path, as_json: bool) -> None:
    from tfrs_negatives.runs.progress import EpochProgress
    from tfrs_negatives.runs.train import resume_run

    report(resume_run(run, callbacks=[EpochProgress()]), as_json, wrote=run)
