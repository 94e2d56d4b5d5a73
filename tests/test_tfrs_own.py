"""The tests that TFRS has of its task and of its metric, with our task in their path.

They are read from the installed wheel and run as they stand. In `retrieval_test` the class under
test is ours, and the metrics beside it are those of TFRS. The metric of `factorized_top_k_test` is
that of TFRS too, as everywhere in this package: ours is the call of the task that updates it, where
the test does so by itself, and with it which queries, positives, ids and weights arrive there. The
other tests of TFRS, of layers, models and ranking, have nothing of ours in them.
"""

from __future__ import annotations

import unittest
from types import SimpleNamespace

import pytest
import tensorflow as tf
import tensorflow_recommenders as tfrs
from tensorflow_recommenders.metrics import factorized_top_k_test
from tensorflow_recommenders.tasks import retrieval_test

from tfrs_negatives.step import task as task_module
from tfrs_negatives.step.task import Retrieval

# It takes a minute: as those that follow it, with another way to search.
SLOWEST = {"test_id_based_evaluation0": pytest.mark.slow}


def cases_of(module):
    """A parameter (class, name of a test) for each test of a module."""
    classes = [
        x for x in vars(module).values() if isinstance(x, type) and issubclass(x, tf.test.TestCase)
    ]
    names = unittest.TestLoader().getTestCaseNames
    # `test_session` is a method of TensorFlow's class and no test.
    return [
        pytest.param(x, name, id=f"{x.__name__}.{name}", marks=SLOWEST.get(name, ()))
        for x in classes
        for name in names(x)
        if name != "test_session"
    ]


TASK_CASES, METRIC_CASES = cases_of(retrieval_test), cases_of(factorized_top_k_test)


def outcome_of(case, name):
    """What a test of unittest ended with: "" or its failure."""
    result = case(name).run()
    assert (result.testsRun, result.skipped) == (1, [])
    return "".join(text for _, text in [*result.failures, *result.errors])


def put_in_place(monkeypatch, kind=Retrieval):
    """Puts a task in the place of that of TFRS; the list of those that a test makes."""
    made = []

    def make(*args, **kwargs):
        made.append(kind(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(retrieval_test.retrieval, "Retrieval", make)
    return made


class UpdatedByTask:
    """The metric of TFRS, updated by a call of our task with the same embeddings."""

    calls = 0

    def __init__(self, *args, **kwargs):
        self.metric = tfrs.metrics.factorized_top_k.FactorizedTopK(*args, **kwargs)
        self.task = Retrieval(metrics=self.metric)

    def update_state(
        self,
        query_embeddings,
        true_candidate_embeddings,
        true_candidate_ids=None,
        sample_weight=None,
    ):
        UpdatedByTask.calls += 1
        self.task(
            query_embeddings,
            true_candidate_embeddings,
            candidate_ids=true_candidate_ids,
            sample_weight=sample_weight,
        )

    def result(self):
        return self.metric.result()


@pytest.fixture
def metric_in_place(monkeypatch):
    monkeypatch.setattr(UpdatedByTask, "calls", 0)
    monkeypatch.setattr(factorized_top_k_test.metrics, "FactorizedTopK", UpdatedByTask)


def test_all_tests_were_found():
    # Of 0.7.7; a later TFRS may have more.
    assert (len(TASK_CASES), len(METRIC_CASES)) >= (4, 9)


@pytest.mark.parametrize(("case", "name"), TASK_CASES)
def test_the_task_passes_the_tests_of_tfrs(monkeypatch, case, name):
    made = put_in_place(monkeypatch)
    assert outcome_of(case, name) == ""
    assert [type(task) for task in made] == [Retrieval]


@pytest.mark.parametrize(("case", "name"), METRIC_CASES)
def test_the_metric_passes_the_tests_of_tfrs_when_the_task_updates_it(metric_in_place, case, name):
    assert outcome_of(case, name) == ""
    assert UpdatedByTask.calls > 0


# ------------------------------------------------------------------ they can fail


class MeanOfBatch(Retrieval):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs, reduction="mean")


class AlwaysRight(Retrieval):
    def _update_batch_metrics(self, scored, sample_weight):
        right = scored.all()
        best = tf.reduce_max(right.logit, axis=1) + 1
        super()._update_batch_metrics(
            SimpleNamespace(all=lambda: right._replace(positive_logit=best)), sample_weight
        )


@pytest.mark.parametrize(("case", "name"), TASK_CASES)
def test_a_wrong_task_fails_them(monkeypatch, case, name):
    put_in_place(monkeypatch, AlwaysRight)
    assert "not equal" in outcome_of(case, name).lower()
    # The test in a graph looks at the metrics only.
    put_in_place(monkeypatch, MeanOfBatch)
    assert ("not equal" in outcome_of(case, name).lower()) == (name != "test_task_graph")


# Without the slowest, which takes a minute to fail.
@pytest.mark.parametrize(("case", "name"), [c for c in METRIC_CASES if c.values[1] not in SLOWEST])
def test_a_metric_that_gets_the_wrong_queries_fails_them(monkeypatch, metric_in_place, case, name):
    right = task_module.update_factorized_metrics

    # A positive that is its own query is found nearly always: whatever a random index answers, the
    # count is another one. (With the query turned round, two small counts may be equal.)
    def wrong(metrics, batch, ids, sample_weight):
        replaced = batch._replace(queries=batch.positives)
        right(metrics, replaced, ids, sample_weight)

    monkeypatch.setattr(task_module, "update_factorized_metrics", wrong)
    assert "Error" in outcome_of(case, name)
