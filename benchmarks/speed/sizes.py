"""How much of everything is measured."""

from __future__ import annotations

from dataclasses import dataclass

SEED, WIDTH = 0, 64


@dataclass(frozen=True)
class Sizes:
    """How much of everything, and how many turns at most."""

    turns: int = 60
    users: int = 30_000
    items: int = 41_000
    step_batches: tuple[int, ...] = (1024, 4096)
    frequency_batch: int = 8192
    buckets: int = 2**20
    queries: int = 2048
    corpus: int = 50_000
    k: int = 100
    stream_batches: tuple[int, ...] = (128, 4096)
    held_out: int = 7
    seen: int = 27
    pool_batch: int = 1024
    pool_columns: int = 8192
    method_candidates: int = 2048
    mask_batch: int = 4096
    mask_events: int = 810_000
    rows: int = 100_000
    cluster_size: int = 256
    index_batch: int = 64
    events: int = 1_000_000
    batch: int = 2048


QUICK = Sizes(
    turns=3,
    users=300,
    items=410,
    step_batches=(64, 128),
    frequency_batch=128,
    buckets=2**12,
    queries=64,
    corpus=1000,
    k=10,
    pool_batch=64,
    pool_columns=512,
    method_candidates=128,
    mask_batch=128,
    mask_events=3000,
    rows=2000,
    events=10_000,
    batch=128,
)
