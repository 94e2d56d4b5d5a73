"""What `fit` and `evaluate` take, with weights in any place, and what they refuse, and how."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import reference
import tensorflow as tf
from test_two_tower import (
    ITEMS,
    LOG_ITEMS,
    LOG_USERS,
    batches,
    item_tower,
    make_eager,
    make_model,
    query_tower,
    reports,
    titles,
)

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.model.recipes import in_batch, mixed_negative_sampling
from tfrs_negatives.model.two_tower import TwoTower
from tfrs_negatives.step.frequency import StreamingFrequency
from tfrs_negatives.step.masks.keep import AccidentalHits
from tfrs_negatives.step.miners import Hardest
from tfrs_negatives.step.samplers import CrossBatch, InBatch
from tfrs_negatives.step.task import Retrieval

ROWS = len(LOG_ITEMS)
COLUMNS = {"user_id": LOG_USERS, "title": titles(LOG_ITEMS)}
WEIGHTS = (np.random.default_rng(5).uniform(0, 2, ROWS) ** 3).astype(np.float32)


def still(**options):
    """A model that does not move, so that the loss of an epoch can be computed beside it."""
    return make_model(
        Retrieval(temperature=0.5, reduction="mean"),
        optimizer=tf.keras.optimizers.SGD(0.0),
        **options,
    )


def weighted_loss(model, weights, size=8):
    """The mean over the epoch of the weighted losses, row by row."""
    users, items = model.query_tower.get_weights()[0], model.item_tower.get_weights()[-1]
    losses, rows = [], []
    for start in range(0, ROWS, size):
        part = slice(start, start + size)
        ids = LOG_ITEMS[part]
        pool = reference.batch_columns(ids, items[1 + ids], len(ids))
        options = {"temperature": 0.5, "weights": weights[part]}
        losses.append(reference.retrieval_loss(users[LOG_USERS[part]], pool, **options))
        rows.append(len(ids))
    return np.average(losses, weights=rows)


def zipped(weights):
    return tf.data.Dataset.zip(batches(), tf.data.Dataset.from_tensor_slices(weights).batch(8))


def with_none(weights):
    return zipped(weights).map(lambda batch, numbers: (batch, None, numbers))


def generated(weights):
    for batch, numbers in zipped(weights):
        yield batch, None, numbers


class Weighted(tf.keras.utils.Sequence):
    def __init__(self, weights):
        self.batches = list(generated(weights))

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


FORMS = {
    "argument": lambda w: {"x": COLUMNS, "sample_weight": w, "batch_size": 8, "shuffle": False},
    "argument of columns": lambda w: FORMS["argument"](w[:, None]),
    "integers": lambda w: FORMS["argument"](w.astype(np.int64)),
    "column": lambda w: {"x": {**COLUMNS, "sample_weight": w}, "batch_size": 8, "shuffle": False},
    "dataset": lambda w: {"x": batches(weights=w)},
    "dataset of tuples": lambda w: {"x": with_none(w)},
    "generator": lambda w: {"x": generated(w)},
    "sequence": lambda w: {"x": Weighted(w), "shuffle": False},
}


@pytest.fixture(scope="module")
def standing():
    """One model for all forms: it does not move, and traces a step for each signature only."""
    return still()


@pytest.mark.parametrize("form", FORMS)
def test_weights_count_wherever_they_are_given(standing, form):
    model = standing
    arguments = FORMS[form](WEIGHTS)
    logged = model.fit(**arguments, verbose=0).history["loss"][0]
    used = WEIGHTS.astype(np.int64) if form == "integers" else WEIGHTS
    assert logged == pytest.approx(weighted_loss(model, used), rel=1e-5)
    assert logged != pytest.approx(weighted_loss(model, np.ones(ROWS)), rel=1e-2)


@pytest.mark.parametrize("form", ["argument", "dataset of tuples"])
def test_weights_count_in_evaluate_and_in_validation(standing, form):
    model, arguments = standing, FORMS[form](WEIGHTS)
    wanted = pytest.approx(weighted_loss(model, WEIGHTS), rel=1e-5)
    own = {name: value for name, value in arguments.items() if name != "shuffle"}
    assert model.evaluate(**own, verbose=0, return_dict=True)["loss"] == wanted
    held_out = (COLUMNS, None, WEIGHTS) if form == "argument" else arguments["x"]
    history = model.fit(COLUMNS, batch_size=8, validation_data=held_out, verbose=0).history
    assert history["val_loss"][0] == wanted


def test_arrays_tuples_of_one_and_single_batches_are_forms_of_a_batch(standing):
    model = standing
    ones = np.ones(ROWS)
    wanted = pytest.approx(weighted_loss(model, ones), rel=1e-5)
    for form in ({"x": COLUMNS, "batch_size": 8, "shuffle": False}, {"x": batches().map(tuple_of)}):
        assert model.fit(**form, verbose=0).history["loss"][0] == wanted
    narrow = {**COLUMNS, "user_id": LOG_USERS[:, None]}
    assert model.evaluate(narrow, batch_size=8, verbose=0)[0] == wanted
    assert model.evaluate(COLUMNS, batch_size=8, verbose=0)[0] == wanted
    model.fit(COLUMNS, None, 8, 1, 0, [])
    whole = pytest.approx(weighted_loss(model, ones, size=ROWS), rel=1e-5)
    assert model.train_on_batch(COLUMNS, return_dict=True)["loss"] == whole
    given = {"x": COLUMNS, "sample_weight": WEIGHTS, "return_dict": True}
    whole = pytest.approx(weighted_loss(model, WEIGHTS, size=ROWS), rel=1e-5)
    for method in (model.train_on_batch, model.test_on_batch):
        model.reset_metrics()
        assert method(**given)["loss"] == whole


def tuple_of(batch):
    return (batch,)


# ------------------------------------------------------------------ refused


def pairs():
    return batches().map(lambda batch: (batch, batch["user_id"]))


class Pairs(tf.keras.utils.Sequence):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        return COLUMNS, LOG_USERS


class Unnamed(Pairs):
    def __getitem__(self, index):
        return LOG_USERS


def weighted(weights):
    return {"x": batches(weights=weights)}


WRONG = {
    "labels": ({"x": COLUMNS, "y": LOG_USERS}, "`y`: expected no labels, .* 'title'"),
    "pairs": ({"x": pairs()}, "`y`: expected no labels"),
    "generated pairs": ({"x": Pairs()}, "`y`: expected no labels"),
    "array": ({"x": LOG_USERS}, "`x`: expected a dict of columns, .* a ndarray"),
    "tensor": ({"x": tf.constant(LOG_USERS)}, "`x`: expected a dict of columns"),
    "tuple": ({"x": (COLUMNS, LOG_USERS)}, "`x`: expected a dict of columns, .* a tuple"),
    "nothing": ({}, "`x`: expected a dict of columns, .* a NoneType"),
    "unnamed": ({"x": batches().map(lambda b: b["user_id"])}, "`batch`: expected a dict of colu"),
    "unnamed sequence": ({"x": Unnamed()}, "`batch`: expected a dict of columns"),
    "four": ({"x": batches().map(lambda b: (b, 1, 2, 3))}, "`batch`: .* a tuple of"),
    "single rows": ({"x": batches().unbatch()}, "`batch.'title'.`: expected one id per row"),
    "lists": ({"x": {**COLUMNS, "user_id": [1] * ROWS}}, "`x.'user_id'.`: .* a list"),
    "numbers": ({"x": {**COLUMNS, "user_id": 1}}, "`x.'user_id'.`: .* a int"),
    "lengths": ({"x": {**COLUMNS, "user_id": LOG_USERS[:3]}}, "`x`: expected the same number"),
    "text for numbers": ({"x": {**COLUMNS, "user_id": titles(LOG_USERS)}},
                         "`batch.'user_id'.`: expected numbers, .* string"),
    "several for one": ({"x": {**COLUMNS, "user_id": np.ones((ROWS, 3), np.int64)}},
                        "`batch.'user_id'.`: expected shape"),
    "in the trace": ({"x": {**COLUMNS, "title": np.ones(ROWS)}}, "`ids`: expected integers"),
    "no ids": ({"x": {"user_id": LOG_USERS}}, "`batch`: expected a column 'title' of item ids"),
    "no users": ({"x": {"title": titles(LOG_ITEMS)}}, "`batch`: expected a column 'user_id'"),
    "beside": ({"x": batches(), "sample_weight": WEIGHTS}, "`sample_weight`: .* 'sample_weight'"),
    "twice": ({**weighted(WEIGHTS), "x": {**COLUMNS, "sample_weight": WEIGHTS},
               "sample_weight": WEIGHTS}, "`sample_weight`: .* Received: both"),
    "text": (weighted(titles(LOG_ITEMS)), "`sample_weight`: expected numbers. .* string"),
    "text arrays": ({"x": COLUMNS, "sample_weight": titles(LOG_ITEMS)}, "expected numbers"),
    "wide": (weighted(np.ones((ROWS, 2))), "`sample_weight`: expected one number per row"),
    "deep": (weighted(np.ones((ROWS, 1, 1))), "`sample_weight`: expected one number per row"),
    "one for all": ({"x": batches().map(lambda b: {**b, "sample_weight": 1.0})},
                    "`sample_weight`: expected one number per row"),
}  # fmt: skip


def assert_one_sentence(error):
    """An InputError of one line, which Keras and TensorFlow left as it was."""
    assert type(error.value) is InputError
    message = str(error.value)
    assert "\n" not in message
    assert message.count("Received:") == 1


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("method", ["fit", "evaluate"])
def test_what_is_no_batch_is_refused_in_one_sentence(case, method):
    arguments, sentence = WRONG[case]
    with pytest.raises(InputError, match=sentence) as error:
        getattr(make_model(), method)(**arguments, verbose=0)
    assert_one_sentence(error)


def test_class_weights_are_refused():
    with pytest.raises(InputError, match=r"`class_weight`: .* 'sample_weight'") as error:
        make_model().fit(COLUMNS, class_weight={0: 1.0})
    assert_one_sentence(error)


def test_what_the_data_tell_is_refused_before_any_step_is_traced():
    model = make_model()
    traced = []
    model.train_step = lambda batch: traced.append(batch)
    for case in ("pairs", "unnamed", "text", "wide", "no ids", "no users"):
        with pytest.raises(InputError):
            model.fit(**WRONG[case][0], verbose=0)
    with pytest.raises(InputError, match="`y`"):
        model.fit(batches(), validation_data=pairs(), verbose=0)
    assert traced == []


# Numbers that are wrong only when they are seen: Keras would train on.
BAD_WEIGHTS = {"nan": np.nan, "inf": np.inf, "-0.5": -0.5}


@pytest.fixture(scope="module", params=[True, False], ids=["eager", "graph"])
def learning(request):
    """A model, one with the same start, and that start: a step is traced once for all weights."""
    pair = [make_model(run_eagerly=request.param) for _ in range(2)]
    for model in pair:
        model.optimizer.build(model.trainable_variables)
    return *pair, [v.numpy() for v in pair[0].variables + pair[0].optimizer.variables]


@pytest.mark.parametrize("bad", BAD_WEIGHTS)
def test_a_weight_that_would_ruin_the_towers_stops_the_step(bad, learning):
    model, again, start = learning
    for each in (model, again):
        for variable, value in zip(each.variables + each.optimizer.variables, start, strict=True):
            variable.assign(value)
    weights = np.ones(ROWS, np.float32)
    weights[11] = BAD_WEIGHTS[bad]
    expected = f"`sample_weight`: expected finite numbers, none below 0. Received: {bad}"
    with pytest.raises(InputError) as error:
        model.fit(batches(weights=weights), verbose=0)
    assert str(error.value) == expected
    # The first batch was in order and has been learned from, the second has changed nothing.
    again.fit(batches(weights=weights).take(1), verbose=0)
    for received, wanted in zip(*(towers_of(m) for m in (model, again)), strict=True):
        np.testing.assert_array_equal(received, wanted)


def towers_of(model):
    return model.query_tower.get_weights() + model.item_tower.get_weights()


def test_weights_of_another_number_of_rows_stop_the_step():
    def generate():
        yield {**COLUMNS, "sample_weight": WEIGHTS[:1]}

    spec = {
        "user_id": tf.TensorSpec(None, tf.int64),
        "title": tf.TensorSpec(None, tf.string),
        "sample_weight": tf.TensorSpec(None, tf.float32),
    }
    data = tf.data.Dataset.from_generator(generate, output_signature=spec)
    model = still()
    with pytest.raises(InputError, match=r"one number per row. Received: 1$"):
        model.fit(data, verbose=0)
    # Without them, data of unknown rank are as any others.
    plain = data.map(lambda batch: {name: batch[name] for name in COLUMNS})
    wanted = pytest.approx(weighted_loss(model, np.ones(ROWS), size=ROWS), rel=1e-5)
    assert model.fit(plain, verbose=0).history["loss"][0] == wanted


def test_an_item_outside_the_catalogue_is_named():
    columns = {"user_id": np.array([0, 1]), "title": np.array(["item 1", "another"])}
    for method in ("fit", "evaluate"):
        with pytest.raises(InputError) as error:
            getattr(make_model(), method)(columns, verbose=0)
        assert (
            str(error.value) == "`title`: expected only items of the catalogue. Received: another"
        )


def test_the_columns_of_a_data_frame_are_a_batch_and_the_frame_is_none():
    frame = pytest.importorskip("pandas").DataFrame(COLUMNS)
    model = still(run_eagerly=True)
    wanted = pytest.approx(weighted_loss(model, np.ones(ROWS)), rel=1e-5)
    assert model.evaluate(dict(frame), batch_size=8, verbose=0)[0] == wanted
    with pytest.raises(InputError, match=r"`x`: expected a dict of columns, .* a DataFrame"):
        model.fit(frame)


def test_a_batch_without_rows_counts_for_nothing():
    parts = (slice(0, 8), slice(0, 0), slice(8, 16), slice(16, 22))
    generated = ({name: column[rows] for name, column in COLUMNS.items()} for rows in parts)
    spec = {"user_id": tf.TensorSpec([None], tf.int64), "title": tf.TensorSpec([None], tf.string)}
    data = tf.data.Dataset.from_generator(lambda: generated, output_signature=spec)
    model = still(run_eagerly=True)
    logged = model.fit(data, verbose=0).history["loss"][0]
    assert logged == pytest.approx(weighted_loss(model, np.ones(ROWS)), rel=1e-5)


# ------------------------------------------------------------------ one row has no negative


@pytest.mark.parametrize("method", ["fit", "evaluate"])
def test_batches_of_one_row_are_refused_where_the_batch_is_the_only_source(method):
    alone = batches().unbatch().batch(1, drop_remainder=True)
    one_row = {name: column[:1] for name, column in COLUMNS.items()}
    for arguments in ({"x": alone}, {"x": COLUMNS, "batch_size": 1}, {"x": one_row}):
        with pytest.raises(InputError, match="`batch`: expected more than one row") as error:
            getattr(make_model(), method)(**arguments, verbose=0)
        assert_one_sentence(error)
    task = mixed_negative_sampling(ITEMS, num_uniform=7)
    getattr(make_eager(task), method)(alone.take(2), verbose=0)


def only_item_1(batch):
    return {**batch, "title": tf.fill(tf.shape(batch["title"]), "item 1")}


SILENT = "not one row had a negative"


def warnings(caplog):
    return [line for line in reports(caplog) if SILENT in line]


WITHOUT_ANY = {
    "one row": (Retrieval, batches(1).take(4)),
    "one row and a miner": (lambda: Retrieval(miners=[Hardest(1)]), batches(1).take(4)),
    "one item and a mask": (
        lambda: in_batch(ITEMS, masks=[AccidentalHits()]),
        batches(4).map(only_item_1),
    ),
}


@pytest.mark.parametrize(
    ("case", "steps"),
    [
        *((case, 1) for case in WITHOUT_ANY),
        pytest.param("one item and a mask", 2, marks=pytest.mark.slow),
    ],
)
def test_a_first_step_without_any_negative_is_said_once(caplog, case, steps):
    task, data = WITHOUT_ANY[case]
    # Of the graphs, the one of several steps.
    model = make_model(task(), steps_per_execution=steps, run_eagerly=steps == 1)
    history = model.fit(data, epochs=2, verbose=0).history
    assert history["loss"] == [0.0, 0.0]
    assert len(warnings(caplog)) == 1


def test_nothing_is_said_where_there_are_negatives(caplog):
    caplog.set_level(logging.INFO, "tfrs_negatives")
    # The last batch has one row, and is the one that the report sees.
    model = make_model(Retrieval(), steps_per_execution=3)
    model.fit({name: column[:15] for name, column in COLUMNS.items()}, batch_size=7, verbose=0)
    assert "1 queries, 1 candidates" in reports(caplog)[0]
    make_eager(in_batch(ITEMS, masks=[AccidentalHits()])).fit(batches(), verbose=0)
    make_eager(mixed_negative_sampling(ITEMS, num_uniform=7)).fit(batches(1).take(2), verbose=0)
    bank = Retrieval(
        negatives=[InBatch(), CrossBatch(4)], frequency=StreamingFrequency(64), similarity="cosine"
    )
    make_eager(bank).fit(batches(1).take(3), verbose=0)
    assert warnings(caplog) == []
    assert len(reports(caplog)) == 4


# ------------------------------------------------------------------ what no input may be named


@pytest.mark.parametrize("name", ["title", "sample_weight"])
def test_a_query_tower_that_would_read_the_answer_is_refused(name):
    column = tf.keras.Input((), name=name, dtype=tf.string)
    rows = tf.keras.layers.StringLookup(vocabulary=ITEMS.ids.tolist())(column)
    tower = tf.keras.Model({name: column}, tf.keras.layers.Embedding(10, 4)(rows))
    with pytest.raises(
        InputError, match=f"`query_tower`: expected no input named '{name}'"
    ) as error:
        TwoTower(tower, item_tower(), ITEMS)
    assert_one_sentence(error)
    if name == "title":
        assert TwoTower(tower, item_tower(), ITEMS, item_key="next_title").item_key == "next_title"
        with pytest.raises(InputError, match="named 'user_id'"):
            TwoTower(query_tower(), item_tower(), ITEMS, item_key="user_id")
