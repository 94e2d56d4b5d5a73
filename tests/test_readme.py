"""The examples of the README and of the guide run as they stand."""

import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.runs.config import RunConfig, load_config, parse_yaml
from tfrs_negatives.step.arguments import Run
from tfrs_negatives.step.task import Retrieval

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
GUIDE = (ROOT / "docs" / "adding_a_method.md").read_text()


@pytest.mark.slow
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


def test_the_task_of_the_readme_is_one():
    tree = parse_yaml(re.search(r"```yaml\n(.*?)```", README, re.S).group(1))
    task = RunConfig.model_validate(tree).task.expansion.build(Run(ItemCatalogue([1, 2, 3])))
    assert [sampler.name for sampler in task.negatives] == ["in_batch", "uniform", "cross_batch"]
    assert (task.frequency.method, task.miners[0].k) == ("interval", 50)


def test_the_parts_of_the_guide_are_named_by_their_module(tmp_path, monkeypatch):
    blocks = [re.search(rf"```{kind}\n(.*?)```", GUIDE, re.S)[1] for kind in ("python", "py")]
    (tmp_path / "my_samplers.py").write_text("\n".join(blocks))
    monkeypatch.syspath_prepend(tmp_path)
    section = re.search(r"```yaml\n(.*?)```", GUIDE, re.S)[1]
    run = Run(ItemCatalogue(list(range(600))))
    written = RunConfig.model_validate(parse_yaml(section)).task
    named = load_config(overrides=["task.recipe=my_samplers:newest_and_batch"]).task
    for task in (written.expansion.build(run), named.expansion.build(run)):
        assert [(type(s).__name__, s.name) for s in task.negatives] == [
            ("InBatch", "in_batch"),
            ("Newest", "newest"),
        ]
        assert task.negatives[1].num_negatives == 512
    with pytest.raises(ValueError, match=r"`task\.negatives\[1\]\.my_samplers:Newest\.num_neg"):
        RunConfig.model_validate(parse_yaml(section.replace("512", "0")))
