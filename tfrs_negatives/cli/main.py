"""The command line: each command is a thin call into the package, in a file of its own.

TensorFlow is imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated

import typer

from tfrs_negatives import __version__
from tfrs_negatives.cli.compare import compare
from tfrs_negatives.cli.demo import demo
from tfrs_negatives.cli.doctor import doctor
from tfrs_negatives.cli.evaluate import evaluate
from tfrs_negatives.cli.index import index
from tfrs_negatives.cli.mine import mine
from tfrs_negatives.cli.parts import parts
from tfrs_negatives.cli.recommend import recommend
from tfrs_negatives.cli.serve import serve
from tfrs_negatives.cli.train import train
from tfrs_negatives.cli.tune import tune
from tfrs_negatives.core.errors import InputError

app = typer.Typer(
    help="Negative sampling for two-tower retrieval: train, evaluate, index, recommend.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (demo, train, tune, compare, evaluate, index, mine, recommend, serve, parts, doctor):
    app.command()(command)


def main() -> None:
    """Runs the command line: 0 is success, 2 bad input in one sentence, 1 any other failure."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("tfrs_negatives").setLevel(logging.INFO)
    # Where a module with parts of one's own may be.
    sys.path.append(os.getcwd())
    try:
        app()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


@app.callback(invoke_without_command=True)
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Options before any command."""
    if version:
        typer.echo(__version__)
        raise typer.Exit
