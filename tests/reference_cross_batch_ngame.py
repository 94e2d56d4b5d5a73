"""Slow, obvious numpy version of one step of cross-batch NGAME, in the words of the thesis.

Numbers in brackets are its steps (section 3.5). Vectors are of length 1 where they are
compared; a radius is a squared distance.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from reference import softmax_loss


class Hard(NamedTuple):
    """The hard negatives of one row: columns of the batch, slots of the bank."""

    in_batch: list[int]
    cross_batch: list[int]


def unit(vector):
    vector = np.asarray(vector, np.float64)
    return vector / math.sqrt(float(vector @ vector))


def distance(a, b):
    return float(((unit(a) - unit(b)) ** 2).sum())


def hard_negatives(user, query, positive, batch, bank, *, known, gate_is_open):
    """[6] to [8]: the columns within the radius of the row's positive, known positives left out.

    `batch` and `bank` are lists of (item, vector); `known` are the items that the user has chosen.
    """
    radius = distance(query, positive)

    def within(columns):
        return [
            place
            for place, (item, vector) in enumerate(columns)
            if item not in known[user] and distance(query, vector) <= radius
        ]

    return Hard(within(batch), within(bank) if gate_is_open else [])


def step_loss(rows, user_vectors, item_vectors, bank, *, known, gate_is_open, share, temperature):
    """[3] to [10]: the mean loss of a batch, and the hard negatives of each row.

    `rows` are (user, item) pairs; `share` is the probability of each item in one draw.
    """
    batch = [(item, item_vectors[item]) for _, item in rows]
    columns = len(batch) + (len(bank) if gate_is_open else 0)
    losses, chosen = [], []
    for user, item in rows:
        query = user_vectors[user]
        hard = hard_negatives(
            user, query, item_vectors[item], batch, bank, known=known, gate_is_open=gate_is_open
        )

        # [9]: the positive is corrected as the negatives are.
        def logit(item, vector, query=query):
            return unit(query) @ unit(vector) / temperature - math.log(columns * share[item])

        others = [batch[j] for j in hard.in_batch] + [bank[j] for j in hard.cross_batch]
        negatives = [logit(other, vector) for other, vector in others]
        losses.append(softmax_loss(logit(item, item_vectors[item]), negatives))
        chosen.append(hard)
    return sum(losses) / len(losses), chosen
