"""The service under load: as many requests as it takes, then half of that, on loopback.

Run it from the root of the repository; it trains a run on the synthetic log and writes results.json
and README.md beside itself, about six minutes on two cores::

    python -m benchmarks.serving.run

The load comes from a process of its own on the same cores, so the rates are lower bounds.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from tfrs_negatives.core.files import write_text

HERE = Path(__file__).parent
PACKAGES = ("tensorflow", "scann", "fastapi", "uvicorn", "numpy")
CONNECTIONS = 64

TEXT = """# The service under load

Written by `python -m benchmarks.serving.run` on {date} from [results.json](results.json).
{machine}, shared with the process that makes the load; Python {python}; {versions}.
`tfrs-negatives serve` of a run on the synthetic log, {items:,} items, exact index; every request
asks the ten best for another known query, every fourth leaves its history out.

| load | seconds | requests | failed | per second | median ms | p99 ms | p99 / median |
|---|---|---|---|---|---|---|---|
{rows}

*saturation*: {connections} connections, each asks again as soon as it has its answer. *half*:
requests begin at fixed moments at half of that rate, whether the earlier ones are answered or not;
the time counts from the moment a request was to begin.
"""


class Connection:
    """One connection that is kept open: a request, its answer, the next."""

    def __init__(self, address: str) -> None:
        self._host, self._port = urlsplit(address).hostname, urlsplit(address).port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, body: dict[str, Any]) -> int:
        """Returns the status of the answer, having read all of it; 0 where none came."""
        try:
            return await self._post(path, body)
        except (OSError, EOFError):
            self.close()
            return 0

    async def _post(self, path: str, body: dict[str, Any]) -> int:
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port)
        reader, writer = self._streams
        content = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(content)}\r\n\r\n"
        )
        writer.write(head.encode() + content)
        answer = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = re.search(r"content-length: (\d+)", answer, re.IGNORECASE)
        await reader.readexactly(int(length.group(1)) if length else 0)
        return int(answer.split(" ", 2)[1])

    def close(self) -> None:
        """Gives the connection up."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


def body_of(number: int, queries: list[str]) -> dict[str, Any]:
    """The request of a number."""
    return {"query_id": queries[number % len(queries)], "exclude_seen": number % 4 == 0}


async def saturate(address: str, queries: list[str], seconds: float) -> dict[str, Any]:
    """All connections ask without a pause."""
    end, statuses, times = time.perf_counter() + seconds, Counter(), []

    async def keep_asking(first: int) -> None:
        connection = Connection(address)
        for number in range(first, sys.maxsize, CONNECTIONS):
            start = time.perf_counter()
            if start >= end:
                break
            statuses[await connection.post("/recommend", body_of(number, queries))] += 1
            times.append(time.perf_counter() - start)
        connection.close()

    await asyncio.gather(*(keep_asking(first) for first in range(CONNECTIONS)))
    return summary("saturation", seconds, statuses, times)


async def offer(address: str, queries: list[str], seconds: float, rate: float) -> dict[str, Any]:
    """Requests begin at fixed moments, on connections that are free then."""
    statuses, times = Counter(), []
    # The one that waited longest comes first: the service closes those that say nothing for long.
    free = deque(Connection(address) for _ in range(CONNECTIONS))
    waiting = asyncio.Semaphore(CONNECTIONS)
    begin = time.perf_counter() + 0.1

    async def ask(number: int) -> None:
        moment = begin + number / rate
        await asyncio.sleep(moment - time.perf_counter())
        async with waiting:
            connection = free.popleft()
            statuses[await connection.post("/recommend", body_of(number, queries))] += 1
            free.append(connection)
        times.append(time.perf_counter() - moment)

    # A second at a time: a task for every request of a minute would be work for the load itself.
    tasks: set[asyncio.Task[None]] = set()
    for number in range(round(seconds * rate)):
        if number % max(1, round(rate / 10)) == 0:
            await asyncio.sleep(max(0.0, begin + number / rate - time.perf_counter() - 0.1))
        task = asyncio.create_task(ask(number))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    for connection in free:
        connection.close()
    return summary("half", seconds, statuses, times)


def summary(
    name: str, seconds: float, statuses: Counter[int], times: list[float]
) -> dict[str, Any]:
    """What became of all requests; times in seconds."""
    return {
        "load": name,
        "seconds": seconds,
        "requests": statuses.total(),
        "failed": statuses.total() - statuses[200],
        "per_second": statuses.total() / seconds,
        "median_ms": 1000 * statistics.median(times),
        "p99_ms": 1000 * float(np.quantile(times, 0.99)),
    }


def command(*arguments: object) -> list[str]:
    """The command line of this package."""
    return [sys.executable, "-u", "-m", "tfrs_negatives", *map(str, arguments)]


def start(run: Path) -> tuple[subprocess.Popen[str], str]:
    """Starts the service, and returns it and its address once it answers."""
    server = subprocess.Popen(  # noqa: S603
        command("serve", run, "--port", 0), stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    for line in server.stdout:
        if found := re.search(r"at (http://\S+)", line):
            return server, found.group(1)
    raise SystemExit("the service did not start")


def measure(run: Path, seconds: float) -> tuple[list[dict[str, Any]], int]:
    """Both loads, after one that warms up."""
    from tfrs_negatives.runs.train import read_columns

    queries = read_columns(run / "queries.parquet")["user_id"].astype(str).tolist()
    server, address = start(run)
    try:
        asyncio.run(saturate(address, queries, min(seconds, 5)))
        full = asyncio.run(saturate(address, queries, seconds))
        print(full, flush=True)
        half = asyncio.run(offer(address, queries, seconds, full["per_second"] / 2))
        print(half, flush=True)
    finally:
        server.terminate()
        server.wait(60)
    return [full, half], len(read_columns(run / "items.parquet")["id"])


def render(results: dict[str, Any]) -> str:
    """The README of the results."""
    rows = [
        f"| {row['load']} | {row['seconds']:.0f} | {row['requests']:,} | {row['failed']} "
        f"| {row['per_second']:,.0f} | {row['median_ms']:.1f} | {row['p99_ms']:.1f} "
        f"| {row['p99_ms'] / row['median_ms']:.1f} |"
        for row in results["rows"]
    ]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    fields = {**results, "versions": versions, "rows": "\n".join(rows)}
    return TEXT.format(**fields, connections=CONNECTIONS)


def main() -> None:
    """Measures and writes results.json and README.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, help="A run with an index; one is trained without.")
    parser.add_argument("--seconds", type=float, default=60)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = arguments.run or Path(folder, "run")
        if arguments.run is None:
            for step in (("train", "--out", run, "train.epochs=1"), ("index", run)):
                subprocess.run(command(*step), check=True)  # noqa: S603
        rows, items = measure(run, arguments.seconds)
    results = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "items": items,
        "rows": rows,
    }
    write_text(HERE / "results.json", json.dumps(results, indent=2) + "\n")
    write_text(HERE / "README.md", render(results))


if __name__ == "__main__":
    main()
