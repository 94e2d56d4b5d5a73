"""The examples of the README and of the guide run as they stand."""

import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.runs.config import RunConfig, parse_yaml
from tfrs_negatives.step.task import Retrieval

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
GUIDE = (ROOT / "docs" / "adding_a_method.md").read_text()


def test_the_example_runs(tmp_path, monkeypatch, capsys):
    code = re.search(r"```python\n(.*?)```", README, re.S).group(1)
    monkeypatch.chdir(tmp_path)
    # A small log and one epoch: the words are tested, not the model.
    small = "synthetic(num_users=300, num_items=1000, num_events=6000)"
    code = code.replace('load("synthetic")', small).replace("epochs=3", "epochs=1")
    assert small in code
    exec(compile(code, "README.md", "exec"), {})  # noqa: S102
    printed = capsys.readouterr().out.splitlines()[-1]
    pattern = r"recall at 100: 0\.\d\d, for the first user: \['item_\d+' 'item_\d+' 'item_\d+'\]"
    assert re.fullmatch(pattern, printed), printed
    shown = re.search(r"What it prints.*?```\n(.*?)```", README, re.S).group(1)
    assert re.fullmatch(pattern, shown.splitlines()[-1])


def test_the_source_of_the_guide_trains_and_is_rebuilt():
    names = {}
    code = re.search(r"```python\n(.*?)```", GUIDE, re.S).group(1)
    exec(compile(code, "adding_a_method.md", "exec"), names)  # noqa: S102
    source = names["Newest"](ItemCatalogue([5, 6, 7, 8]), 2)
    counts = source.log_count(tf.constant([5, 7, 99], tf.int64), None)
    np.testing.assert_array_equal(counts, [-np.inf, 0.0, -np.inf])
    corpus = tf.eye(4)
    task = Retrieval(negatives=[source], correct=None)
    for part in (task, Retrieval.from_config(task.get_config())):
        loss = part(
            corpus[:1],
            corpus[:1],
            candidate_ids=[5],
            encode_items=lambda features: tf.gather(corpus, features["item_id"] - 5),
            training=False,
        )
        # The positive has score 1; the two newest, other unit vectors, have 0.
        assert float(loss) == pytest.approx(np.log(np.e + 2) - 1, rel=1e-6)


def test_the_log_of_the_data_page_is_read_as_it_says(capsys):
    page = (ROOT / "docs" / "data.md").read_text()
    code = re.search(r"```python\n(.*?)```", page, re.S).group(1)
    exec(compile(code, "data.md", "exec"), {})  # noqa: S102
    assert f"It prints `{capsys.readouterr().out.strip()}`" in page


def test_the_configuration_of_the_data_page_is_one():
    page = (ROOT / "docs" / "data.md").read_text()
    tree = parse_yaml(re.search(r"```yaml\n(.*?)```", page, re.S).group(1))
    config = RunConfig.model_validate(tree)
    assert config.data.columns["age"].missing == "own"
    assert config.data.items.columns["name"].role == "title"
