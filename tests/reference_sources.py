"""Slow, obvious version of the sources: one item, one column, one row and one step at a time."""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

import numpy as np
from reference import EMPTY, NOBODY, Column, keeps, score, softmax_loss

# ---------------------------------------------------------------- the bank


class Stored(NamedTuple):
    """One slot of the bank: which item, its vector as it was, and in which batch it came."""

    item: int
    vector: np.ndarray
    batch: int


class Bank:
    """A queue of the last `capacity` items; what enters a full one pushes the oldest out."""

    def __init__(self, capacity):
        self.queue, self.batches = deque(maxlen=capacity), 0

    def push(self, items, vectors):
        self.batches += 1
        for item, vector in zip(items, vectors, strict=True):
            vector = np.array(vector, np.float64)
            # A slot whose vector is no number holds nobody.
            held = int(item) if np.isfinite(vector).all() else EMPTY
            self.queue.append(Stored(held, vector, self.batches))

    def age(self, stored):
        """In batches: what the last batch pushed is 1 old."""
        return self.batches + 1 - stored.batch

    def columns(self, max_age=None):
        """What the bank proposes: columns that are nobody's positive."""
        return [
            Column(stored.item, stored.vector, NOBODY)
            for stored in self.queue
            if stored.item != EMPTY and (max_age is None or self.age(stored) <= max_age)
        ]


def rounded(x, bits, largest, smallest_step=0.0):
    """A number with so many binary digits; what is too large becomes the largest."""
    x = min(max(x, -largest), largest)
    if x == 0:
        return 0.0
    _, exponent = math.frexp(x)
    step = max(2.0 ** (exponent - bits), smallest_step)
    # Half a step goes to the even neighbour, as the processor does it.
    return round(x / step) * step


def drift(old, new, measure):
    """How far the probes have moved between two tables of vectors."""
    moved = length = 0.0
    for before, now in zip(old, new, strict=True):
        for a, b in zip(before, now, strict=True):
            moved += (float(b) - float(a)) ** 2
            length += float(b) ** 2
    return moved / length if measure == "relative" else moved


def probed_steps(sizes, interval):
    """After which steps (from 1) the probes are measured: the first, then once in `interval`."""
    due, passed = [], 0
    for step, size in enumerate(sizes, start=1):
        passed += size
        if step == 1 or passed >= interval:
            due.append(step)
            passed = 0
    return due


# ---------------------------------------------------------------- draws


def popularity(counts, exponent):
    """Shares in proportion to a power of the counts; no events count as half of one."""
    powers = [max(count, 0.5) ** exponent for count in counts]
    return [power / sum(powers) for power in powers]


def log_uniform(counts):
    """Zipf's law over the ranks by count, of equal counts the first in the catalogue."""
    places = sorted(range(len(counts)), key=lambda place: (-max(counts[place], 0.5), place))
    shares = [0.0] * len(counts)
    for rank, place in enumerate(places):
        shares[place] = (math.log(rank + 2) - math.log(rank + 1)) / math.log(len(counts) + 1)
    return shares


# ---------------------------------------------------------------- a step of weighted columns


class Term(NamedTuple):
    """A column with the mean number of columns that hold its item, and its weight."""

    column: Column
    count: float = 1.0
    weight: float = 1.0


def row_logits(row, query, positive, terms, *, policy=None, accidental_hits=False, count=1.0):
    """The positive's logit and those of the columns that count; `count` is the positive's."""
    logits = []
    for term in terms:
        if term.weight == 0:
            continue
        if keeps(row, positive, 0, term.column, accidental_hits=accidental_hits):
            logit = score(query, term.column.vector) + math.log(term.weight)
            logits.append(logit if policy is None else logit - math.log(term.count))
    own = score(query, positive.vector)
    return (own - math.log(count) if policy == "both" else own), logits


def step_loss(queries, positives, terms, *, own_terms=None, counts=None, **options):
    """The mean loss of a batch; `own_terms` are columns of single rows, a list for each."""
    total = 0.0
    for row, query in enumerate(queries):
        columns = [*terms, *(own_terms[row] if own_terms else [])]
        count = 1.0 if counts is None else counts[row]
        total += softmax_loss(
            *row_logits(row, query, positives[row], columns, count=count, **options)
        )
    return total / len(queries)


def easy_hard_loss(positive, easy, hard, share):
    """A share of the loss against the hard ones, the rest against the easy ones."""
    if not hard:
        return softmax_loss(positive, easy)
    if not easy:
        return softmax_loss(positive, hard)
    return (1 - share) * softmax_loss(positive, easy) + share * softmax_loss(positive, hard)
