"""The process: it listens, loads what is to be served, and ends without breaking off an answer."""

from __future__ import annotations

import asyncio
import gc
import math
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import typer
import uvicorn
from starlette.types import ASGIApp

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.serve.deployment import Deployment


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves the signals to `run_server`: the library would end the process by them."""
        yield


def listen(host: str, port: int) -> socket.socket:
    """Returns a socket that listens.

    Raises:
        InputError: if the address is taken or is not of this machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise bad_input(
            "port", "a free address of this machine", f"{host}:{port}: {error}"
        ) from error


def freeze_loaded() -> None:
    """Takes all objects that live now out of later garbage collections.

    A loaded graph is several hundred thousand objects; a full collection of them stops all
    requests for a few tenths of a second, again and again. What a former export left goes first.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


async def run_server(
    app: ASGIApp, deployments: Sequence[Deployment], listening: socket.socket, *, grace: float
) -> None:
    """Answers until the process is told to end by SIGINT or SIGTERM.

    It answers from the beginning: `/health` says that it lives, `/ready` when all is loaded.

    Args:
        app: what answers.
        deployments: what has to be loaded.
        listening: a socket that listens.
        grace: seconds that requests have to finish, once the process is told to end.

    Raises:
        InputError: if an export cannot be loaded.
    """
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=math.ceil(grace),
    )
    server = _Server(config)
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, server.handle_exit, number, None)
    serving = asyncio.create_task(server.serve([listening]))
    try:
        for deployment in deployments:
            await asyncio.to_thread(deployment.load)
        names = " and ".join(deployment.name for deployment in deployments)
        typer.echo(f"serving {names} at {_url(listening)}")
    except BaseException:
        server.should_exit = True
        raise
    finally:
        await serving


def _url(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
