"""Towers as users write them: unbuilt, of one tensor, and with ragged columns."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from test_two_tower import (
    ITEMS,
    LOG_ITEMS,
    LOG_USERS,
    USERS,
    D,
    N,
    batches,
    embedding,
    item_tower,
    query_tower,
    titles,
)

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.index.build.build import build_index
from tfrs_negatives.index.saved.export import export_index
from tfrs_negatives.index.saved.load import load_index
from tfrs_negatives.model.recipes import mixed_negative_sampling
from tfrs_negatives.model.two_tower import TwoTower

ONLY_IDS = ItemCatalogue(ITEMS.ids, item_key="title")
COLUMNS = {"user_id": LOG_USERS, "title": titles(LOG_ITEMS), "unread": np.ones(len(LOG_USERS))}


def lookup():
    return tf.keras.layers.StringLookup(vocabulary=ITEMS.ids.tolist())


def make_model(query, item, items=ITEMS, **options):
    model = TwoTower(query, item, items, mixed_negative_sampling(items, num_uniform=5), **options)
    model.compile(tf.keras.optimizers.Adagrad(0.2), run_eagerly=True)
    return model


def user_of(columns):
    return columns["user_id"]


@tf.keras.utils.register_keras_serializable(package="tests")
class Tower(tf.keras.Model):
    """Built by its first call, of a dict."""

    def __init__(self, column, seed, **kwargs):
        super().__init__(**kwargs)
        self.column, self.seed = column, seed
        self.table = embedding(N + 1, seed)
        self.lookup = lookup() if column == "title" else tf.identity

    def call(self, columns):
        return self.table(self.lookup(columns[self.column]))

    def get_config(self):
        return {**super().get_config(), "column": self.column, "seed": self.seed}


def of_lambda():
    return tf.keras.Sequential([tf.keras.layers.Lambda(user_of), embedding(USERS, 1)])


QUERY = {"lambda": of_lambda, "subclassed": lambda: Tower("user_id", 1), "named": query_tower}
ITEM = {
    "one tensor": (lambda: tf.keras.Sequential([lookup(), embedding(N + 1, 2)]), ONLY_IDS),
    "subclassed": (lambda: Tower("title", 2), ITEMS),
    "named": (item_tower, ITEMS),
}


def weights_of(model):
    return [model.query_tower.get_weights()[-1], model.item_tower.get_weights()[-1]]


@pytest.mark.parametrize(
    ("query", "item"),
    [("lambda", "named"), ("subclassed", "subclassed"), ("named", "one tensor")],
)
@pytest.mark.parametrize("form", ["arrays", "dataset", "generator", "one batch"])
def test_unbuilt_towers_learn_what_named_ones_learn(query, item, form):
    def train(query, item, items):
        model = make_model(query, item, items)
        data = tf.data.Dataset.from_tensor_slices(COLUMNS).batch(11)
        if form == "arrays":
            model.fit(COLUMNS, batch_size=11, shuffle=False, verbose=0)
        elif form == "one batch":
            for batch in data:
                model.train_on_batch(batch)
        else:
            model.fit(data if form == "dataset" else iter(data), verbose=0)
        return weights_of(model)

    tower, items = ITEM[item]
    received = train(QUERY[query](), tower(), items)
    wanted = train(query_tower(), item_tower(), ITEMS)
    start = weights_of(make_model(query_tower(), item_tower()))
    for a, b, before in zip(received, wanted, start, strict=True):
        np.testing.assert_array_equal(a[: len(b)], b)
        assert np.abs(b - before).max() > 0.01


def test_unbuilt_towers_in_a_graph_are_built_before_it():
    model = TwoTower(Tower("user_id", 1), Tower("title", 2), ITEMS)
    model.compile(tf.keras.optimizers.Adagrad(0.2))
    assert not model.query_tower.built
    assert model.item_tower.built
    history = model.fit(batches(), epochs=10, verbose=0).history["loss"]
    assert history[-1] < history[0]


# Each form of each tower once; the other pairs are slow.
EACH_ONCE = {"lambda": "one tensor", "subclassed": "subclassed", "named": "named"}


@pytest.mark.parametrize(
    ("query", "item"),
    [
        pytest.param(q, i, marks=() if EACH_ONCE[q] == i else pytest.mark.slow)
        for q in QUERY
        for i in ITEM
    ],
)
def test_what_is_accepted_is_saved_indexed_and_exported(tmp_path, query, item):
    tower, items = ITEM[item]
    model = make_model(QUERY[query](), tower(), items)
    model.fit(COLUMNS, batch_size=11, verbose=0)
    assert list(model.query_signature) == ["user_id"]
    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras", safe_mode=query != "lambda")
    loaded.compile(loaded.optimizer, run_eagerly=True)
    users = {"user_id": np.arange(USERS)}
    np.testing.assert_array_equal(loaded.query_vectors(users), model.query_vectors(users))
    exact = np.argsort(-(model.query_vectors(users) @ tf.transpose(corpus(model))), axis=1)[:, :3]
    for each in (model, loaded):
        index = build_index(each)
        assert list(index.item_signature) == ["title"]
        np.testing.assert_array_equal(index.top_k(users, k=3)[1], ITEMS.ids[exact])
    for each in (model, loaded):
        each.fit(COLUMNS, batch_size=22, shuffle=False, verbose=0)
    for received, wanted in zip(weights_of(loaded), weights_of(model), strict=True):
        np.testing.assert_array_equal(received, wanted)
    if query != "named" and item != "named":
        export_index(build_index(model), tmp_path / "index", ks=[3], check=False)
        again = load_index(tmp_path / "index")
        np.testing.assert_array_equal(
            again.top_k(users, k=3)[1], build_index(model).top_k(users, k=3)[1]
        )


def corpus(model):
    return model.item_vectors(model.items.gather(tf.range(N)))


def test_a_table_alone_is_a_tower_of_ids():
    items = ItemCatalogue(np.arange(N))
    data = {"user_id": LOG_USERS, "item_id": LOG_ITEMS}
    model = make_model(query_tower(), tf.keras.Sequential([embedding(N, 2)]), items)
    model.fit(data, verbose=0)
    table = model.item_tower.get_weights()[-1]
    directions = table / np.linalg.norm(table, axis=1, keepdims=True)
    np.testing.assert_allclose(model.item_vectors({"item_id": np.arange(N)}), directions, rtol=1e-5)


def test_a_model_that_has_seen_no_batch_is_saved_as_such(tmp_path):
    model = make_model(Tower("user_id", 1), Tower("title", 2))
    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    with pytest.raises(InputError, match=r"`query_tower`: .* a call of `fit` before"):
        _ = loaded.query_signature
    loaded.compile("sgd", run_eagerly=True)
    loaded.fit(COLUMNS, verbose=0)
    assert list(loaded.query_signature) == ["user_id"]


def test_layers_that_cannot_be_repeated_are_found_when_they_are_made():
    class Late(tf.keras.Model):
        def build(self, shape):
            self.table, self.drop = embedding(USERS, 1), tf.keras.layers.Dropout(0.5)
            self.built = True

        def call(self, columns):
            return self.drop(self.table(columns["user_id"]))

    model = make_model(Late(), item_tower(), encode_chunk=4)
    with pytest.raises(InputError, match=r"`encode_chunk`: .*Dropout"):
        model.fit(COLUMNS, verbose=0)


def named(name):
    column = tf.keras.Input((), name=name, dtype=tf.string)
    return tf.keras.Model({name: column}, embedding(N + 1, 2)(lookup()(column)))


REFUSED = {
    "query of one tensor": (
        lambda: TwoTower(tf.keras.Sequential([embedding(USERS, 1)]), item_tower(), ITEMS),
        "`query_tower`: expected a model whose input is named .*tf.keras.Input",
    ),
    "item of one tensor": (
        lambda: TwoTower(query_tower(), ITEM["one tensor"][0](), ITEMS),
        "`item_tower`: expected a model whose input is named as one of .'title', 'year'.",
    ),
    "item of a column that is not there": (
        lambda: TwoTower(query_tower(), named("name"), ITEMS),
        "`item_tower`: expected inputs named as the catalogue's features, .*'name'",
    ),
    "item that fails": (
        lambda: TwoTower(query_tower(), Tower("name", 2), ITEMS),
        "`item_tower`: expected a model of a dict of the columns .'title', 'year'.*KeyError",
    ),
    "query that reads the answer": (
        lambda: make_model(Tower("title", 1), item_tower()).fit(COLUMNS, verbose=0),
        "`query_tower`: expected a model of a dict of the columns .'unread', 'user_id'.*KeyError",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_towers_that_cannot_be_used_are_refused_in_one_sentence(case):
    make, sentence = REFUSED[case]
    with pytest.raises(InputError, match=sentence) as error:
        make()
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------ ragged columns

LENGTHS = np.resize([2, 0, 3, 1], len(LOG_USERS))
PADDED = np.where(np.arange(3) < LENGTHS[:, None], (LOG_ITEMS[:, None] + np.arange(3)) % N, -1)


def ragged(text):
    values = PADDED[PADDED >= 0]
    return tf.RaggedTensor.from_row_lengths(titles(values) if text else values, LENGTHS)


def history_tower(form, text=False):
    """The mean of the titles of a history, 0 for an empty one."""
    column = tf.keras.Input(
        (3,) if form == "padded" else (None,),
        name="history",
        dtype=tf.string if text else tf.int64,
        ragged=form != "padded",
    )
    rows = lookup()(column) - 1 if text else column
    if form == "padded":
        present = tf.cast(column >= 0, tf.float32)
        vectors = embedding(N, 1)(tf.maximum(rows, 0)) * present[:, :, None]
        count = tf.reduce_sum(present, axis=1, keepdims=True)
        mean = tf.reduce_sum(vectors, axis=1) / tf.maximum(count, 1.0)
    else:
        sums = tf.reduce_sum(embedding(N, 1)(rows), axis=1)
        count = tf.cast(column.row_lengths(), tf.float32)[:, None]
        mean = sums / tf.maximum(count, 1.0)
    start = tf.keras.initializers.RandomNormal(seed=8)
    vector = tf.keras.layers.Dense(D, kernel_initializer=start)(mean) + 0.1
    return tf.keras.Model({"history": column}, vector)


def history_data(form, text=False):
    columns = {"history": PADDED if form == "padded" else ragged(text)}
    columns["title"] = tf.constant(titles(LOG_ITEMS))
    return tf.data.Dataset.from_tensor_slices(columns).batch(8)


@pytest.mark.parametrize(
    ("text", "chunk"),
    [
        pytest.param(False, None, id="integers"),
        pytest.param(False, 3, id="integers-chunks", marks=pytest.mark.slow),
        pytest.param(True, None, id="strings", marks=pytest.mark.slow),
        pytest.param(True, 3, id="strings-chunks"),
    ],
)
def test_ragged_columns_are_as_padded_ones(text, chunk):
    def run(form, text):
        model = make_model(history_tower(form, text), item_tower(), encode_chunk=chunk)
        losses = model.fit(history_data(form, text), epochs=2, verbose=0).history["loss"]
        losses.append(model.evaluate(history_data(form, text), verbose=0)[0])
        column = PADDED if form == "padded" else ragged(text)
        return losses, model.query_vectors({"history": column})

    (received, vectors), (wanted, padded) = run("ragged", text), run("padded", False)
    np.testing.assert_allclose(received, wanted, rtol=1e-5)
    np.testing.assert_allclose(vectors, padded, rtol=1e-4, atol=1e-6)


def test_ragged_columns_are_traced_and_saved(tmp_path):
    model = TwoTower(history_tower("ragged"), item_tower(), ITEMS, encode_chunk=3)
    model.compile(tf.keras.optimizers.Adagrad(0.2))
    losses = model.fit(history_data("ragged"), verbose=0).history["loss"]
    eager = TwoTower(history_tower("ragged"), item_tower(), ITEMS)
    eager.compile(tf.keras.optimizers.Adagrad(0.2), run_eagerly=True)
    np.testing.assert_allclose(
        losses, eager.fit(history_data("ragged"), verbose=0).history["loss"], rtol=1e-5
    )
    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    columns = {"history": ragged(False)}
    np.testing.assert_array_equal(loaded.query_vectors(columns), model.query_vectors(columns))


@pytest.mark.parametrize("text", [False, True], ids=["integers", "strings"])
def test_an_index_takes_ragged_queries_and_an_export_says_that_it_does_not(tmp_path, text):
    model = make_model(history_tower("ragged", text), item_tower())
    model.fit(history_data("ragged", text), verbose=0)
    spec = model.query_signature["history"]
    assert isinstance(spec, tf.RaggedTensorSpec)
    assert spec.dtype == (tf.string if text else tf.int64)
    column = ragged(text)
    index = build_index(model, probe_queries={"history": column})
    vectors = model.query_vectors({"history": column}).numpy()
    lists = [[x.decode() if text else x for x in row] for row in column.to_list()]
    for form in (column, lists, np.array([np.array(row) for row in lists], object)):
        np.testing.assert_array_equal(index.embed_query({"history": form}), vectors)
    np.testing.assert_array_equal(build_index(model).embed_query({"history": column}), vectors)
    for wrong in ([["a"], [1]], [1, 2] if not text else ["a", "b"], [[1.5]], tf.zeros([2, 2])):
        with pytest.raises(InputError, match=r"'history'.*: expected lists of"):
            index.embed_query({"history": wrong})
    with pytest.raises(InputError, match=r"`query_signature`: expected dense features.*'history'"):
        export_index(index, tmp_path / "index", ks=[3])
    assert not (tmp_path / "index").exists()
