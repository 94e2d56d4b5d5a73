"""`tfrs-negatives serve`: binds, loads, answers, and ends when it is told to.

FastAPI and TensorFlow are imported inside the command, so that `--help` answers at once.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from tfrs_negatives.cli.common import importing
from tfrs_negatives.core.errors import bad_input

TOKEN_VARIABLE = "TFRS_NEGATIVES_TOKEN"  # noqa: S105  (the name, not the token)


def serve(
    run: Annotated[Path, typer.Argument(help="A run folder with an index.")],
    beside: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Another run, to compare it with.")
    ] = None,
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 is any free one.")] = 8000,
    token_file: Annotated[
        Path | None,
        typer.Option(
            help=f"A file with the token that requests have to carry; or {TOKEN_VARIABLE}."
        ),
    ] = None,
    max_batch: Annotated[
        int, typer.Option(min=1, help="Requests that are answered together, at most.")
    ] = 64,
    max_queue: Annotated[
        int, typer.Option(min=1, help="Requests that may wait; beyond it the answer is 503.")
    ] = 1024,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds that a request may take.")
    ] = 10.0,
) -> None:
    """Serve a run over HTTP: recommendations, changes of the items, metrics, and a page.

    Example: tfrs-negatives serve runs/first --beside runs/second

    POST /recommend answers with the best items for the features of a query, or
    for a known one. /openapi.json describes all endpoints; / is a page to look
    at the run with. Another export of the run (`tfrs-negatives index RUN
    --overwrite`) takes over within a second or two, without a failed request;
    a damaged one is refused, and the old one stays.

    Items that are put or deleted over HTTP live in the memory of the process
    until the next start: an export that takes over has these changes too, but
    a restart forgets them. Put them into the data of the next run.

    Beyond this machine (--host) every request but /health and the empty page
    needs `Authorization: Bearer` and the token.
    """
    token = read_token(token_file, os.environ)
    with importing("serve", extra="serve"):
        from tfrs_negatives.serve.app import LOOPBACK_NAMES, create_app, is_loopback
        from tfrs_negatives.serve.deployment import Deployment
        from tfrs_negatives.serve.server import freeze_loaded, listen, run_server
    local = is_loopback(host)
    if not local and token is None:
        expected = f"a token beyond this machine: --token-file or {TOKEN_VARIABLE}"
        raise bad_input("host", expected, f"{host} without one")
    folders = [run] if beside is None else [run, beside]
    deployments = [
        Deployment(folder, name, after_load=freeze_loaded)
        for folder, name in zip(folders, _names(folders), strict=True)
    ]
    app = create_app(
        deployments,
        token=token,
        hosts=LOOPBACK_NAMES if local else None,
        max_batch=max_batch,
        max_queue=max_queue,
        timeout=timeout,
    )
    asyncio.run(run_server(app, deployments, listen(host, port), grace=timeout))


def read_token(file: Path | None, environment: Mapping[str, str]) -> str | None:
    """Returns the token that requests have to carry, None for none.

    Args:
        file: the file with the token; None is the environment.
        environment: variable -> value.

    Raises:
        InputError: if the file cannot be read, or the token is empty or has other characters than
            a header can carry. The message does not repeat the token.

    Example:
        >>> read_token(None, {"TFRS_NEGATIVES_TOKEN": "a1b2"})
        'a1b2'
    """
    if file is None and TOKEN_VARIABLE not in environment:
        return None
    name = TOKEN_VARIABLE if file is None else "token_file"
    try:
        text = environment[TOKEN_VARIABLE] if file is None else file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise bad_input(name, "a text file that can be read", f"{file}") from error
    token = text.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise bad_input(name, "one word of visible ASCII characters", f"{len(token)} characters")
    return token


def _names(folders: list[Path]) -> list[str]:
    names = [folder.resolve().name for folder in folders]
    # Two runs of one name are told apart by where they are.
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]
