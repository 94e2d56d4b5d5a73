"""Slow, obvious frequency estimators: a dict per hash row, every count decayed at every step."""

from __future__ import annotations

import math

EMPTY = -(2**63)


class ReferenceCounts:
    """Decayed counts. `buckets_of(id)` gives the bucket of an id in each row."""

    def __init__(self, num_hashes, rate, buckets_of):
        self.rows = [{} for _ in range(num_hashes)]
        self.rate, self.buckets_of, self.total = rate, buckets_of, 0.0

    def update(self, ids):
        for row in self.rows:
            for bucket in row:
                row[bucket] *= 1 - self.rate
        self.total *= 1 - self.rate
        for i in ids:
            if i == EMPTY:
                continue
            self.total += 1
            for row, bucket in zip(self.rows, self.buckets_of(i), strict=True):
                row[bucket] = row.get(bucket, 0.0) + 1

    def log_probability(self, i):
        counts = [row.get(b, 0.0) for row, b in zip(self.rows, self.buckets_of(i), strict=True)]
        return math.log(max(min(counts), 0.5) / max(self.total, 1.0))


class ReferenceGaps:
    """Mean gaps between sights: row[bucket] is (mean gap, last step)."""

    def __init__(self, num_hashes, rate, buckets_of, batch_size, initial_gap=100.0):
        self.rows = [{} for _ in range(num_hashes)]
        self.rate, self.buckets_of = rate, buckets_of
        self.batch_size, self.initial_gap, self.step = batch_size, initial_gap, 0

    def update(self, ids):
        self.step += 1
        for number, row in enumerate(self.rows):
            for bucket in {self.buckets_of(i)[number] for i in ids if i != EMPTY}:
                if bucket not in row:
                    row[bucket] = (self.initial_gap, self.step)
                else:
                    gap, last = row[bucket]
                    gap += self.rate * ((self.step - last) - gap)
                    row[bucket] = (gap, self.step)

    def log_probability(self, i):
        gaps = []
        for row, bucket in zip(self.rows, self.buckets_of(i), strict=True):
            gap, last = row.get(bucket, (self.initial_gap, -1))
            gaps.append(max(gap, self.step - last))
        hit = min(1 / max(gaps), 1 - 1 / (4 * self.batch_size))
        return math.log(1 - (1 - hit) ** (1 / self.batch_size))


def splitmix_finaliser(x):
    """The published 64-bit mix in plain integers, without the sign bit of the answer."""
    full = 2**64
    x %= full
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % full
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % full
    return (x ^ (x >> 31)) % 2**63
