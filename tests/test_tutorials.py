"""A model of the TFRS tutorials learns as well with our task in the place of that of TFRS.

One epoch of the basic one on MovieLens-100K, with rates at which TFRS learns. The other models, and
more epochs and seeds, are in `benchmarks/tutorials`.
"""

import sys
from collections import Counter
from pathlib import Path

import pytest
import tensorflow_recommenders as tfrs

from tfrs_negatives.step.task import Retrieval

sys.path.insert(0, str(Path(__file__).parents[1]))  # `benchmarks` is not installed

from benchmarks.tutorials import models

FOLDER = Path(__file__).parents[2] / "shared" / "data" / "ml-100k"
needs_data = pytest.mark.skipif(not FOLDER.is_dir(), reason="../shared/data/ml-100k is absent")
RATES = {"SGD": 0.1, "Adagrad": 0.1, "Adam": 0.01}


@pytest.fixture(scope="module")
def log():
    return models.read_log(FOLDER)


@needs_data
@pytest.mark.parametrize("optimizer", ["Adagrad", "SGD", "Adam"])
@pytest.mark.slow
def test_one_changed_line_learns_as_tfrs_does(log, optimizer):
    theirs, ours = (
        models.accuracy(
            "basic", log, task, models.OPTIMIZERS[optimizer](RATES[optimizer]), epochs=1, seed=0
        )
        for task in (tfrs.tasks.Retrieval(), Retrieval())
    )
    # By chance it is 100 of 1664 titles.
    assert theirs > 3 * 100 / 1664
    assert ours >= 0.95 * theirs


@needs_data
def test_the_history_is_what_the_user_has_seen_before(log):
    assert (len(log.users), len(set(log.users)), len(set(log.titles))) == (100_000, 943, 1664)
    for event in (0, 3, 10, 11, 99_999):
        first = list(log.users).index(log.users[event])
        before = list(log.titles[first:event])[-models.HISTORY :]
        assert log.history[event].tolist() == [""] * (models.HISTORY - len(before)) + before


@needs_data
def test_every_event_is_trained_on_or_tested(log):
    train, test = models.split(log, sequential=False, seed=0)
    assert (len(train.users), len(test.users)) == (80_000, 20_000)
    counts = [Counter(zip(x.users, x.titles, strict=True)) for x in (train, test, log)]
    # Of each user's events with a title, which may be two movies, every one is in one part.
    assert counts[0] + counts[1] == counts[2]
    train, test = models.split(log, sequential=True, seed=0)
    assert (train.history[:, -1] != "").all()
    assert len(train.users) + len(test.users) == 100_000 - 943
