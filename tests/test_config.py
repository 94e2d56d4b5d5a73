"""The configuration: defaults, files, overrides, and one sentence for everything that is wrong."""

import pytest
import yaml

from tfrs_negatives.core.errors import InputError
from tfrs_negatives.runs.config import RunConfig, load_config


def test_defaults_without_a_file():
    assert load_config() == RunConfig()


def test_file_and_overrides_meet_and_overrides_win(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("train: {epochs: 3, batch_size: 64}\nmodel: {item_bias: true}\n")
    config = load_config(path, ["train.epochs=7", "data.source=lightgcn:there"])
    assert (config.train.epochs, config.train.batch_size) == (7, 64)
    assert config.model.item_bias
    assert config.data.source == "lightgcn:there"


def test_resolved_yaml_reads_back_equal():
    config = load_config(overrides=["model.hidden=[64]", "negatives.correct=null"])
    assert RunConfig.model_validate(yaml.safe_load(config.to_yaml())) == config
    assert config.negatives.correct is None


def test_an_empty_file_is_the_defaults(tmp_path):
    (tmp_path / "empty.yaml").write_text("")
    assert load_config(tmp_path / "empty.yaml") == RunConfig()


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.epoch=3", "perhaps `train.epochs`"),
        ("trian.epochs=3", "perhaps `train`"),
        ("model.zzz=1", "one of"),
        ("train.epochs=0", "`train.epochs`"),
        ("train.epochs=2.5", "`train.epochs`"),
        ("train.epochs=many", "`train.epochs`"),
        ("train.learning_rate=-1", "`train.learning_rate`"),
        ("train.optimizer=sgd", "'adagrad' or 'sparse_adam'"),
        ("data.split=sideways", "`data.split`"),
        ("data.test_fraction=1.5", "`data.test_fraction`"),
        ("model.temperature=0", "`model.temperature`"),
        ("model.hidden=[wide]", "`model.hidden.0`"),
        ("model.similarity=euclid", "'dot' or 'cosine'"),
        ("model.query_features={age: round}", "`model.query_features.age`"),
        ("negatives.num_uniform=-3", "`negatives.num_uniform`"),
        ("negatives.strength=2", "`negatives.strength`"),
        (
            "negatives.recipe=magic",
            "'in_batch', 'uniform_negative_sampling', 'mixed_negative_sampling'",
        ),
        ("evaluation.ks=[]", "`evaluation.ks`"),
        ("index.target_recall=1.1", "`index.target_recall`"),
        ("train=3", "`train`"),
        ("train.epochs", "section.key=value"),
        ("train.epochs=[1", "a value in YAML"),
        ("train.epochs.more=1", "`train.epochs`"),
    ],
)
def test_a_bad_override_is_one_sentence_that_names_the_key(override, says):
    with pytest.raises(InputError) as error:
        load_config(overrides=[override])
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [("a: [1", "valid YAML"), ("- 1\n- 2\n", "a mapping of sections"), ("a: 1\n", "`a`")],
)
def test_a_bad_file_is_one_sentence(tmp_path, content, says):
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(InputError, match=says) as error:
        load_config(path)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"gone\.yaml"):
        load_config(tmp_path / "gone.yaml")


@pytest.mark.parametrize("text", ["1e-3", "1.0e-3", "0.001", ".1e-2", "1E-3"])
def test_a_number_may_be_written_in_any_usual_way(tmp_path, text):
    (tmp_path / "run.yaml").write_text(f"train: {{learning_rate: {text}}}\n")
    assert load_config(tmp_path / "run.yaml").train.learning_rate == 0.001
    assert load_config(overrides=[f"train.learning_rate={text}"]).train.learning_rate == 0.001


def test_strings_that_look_like_numbers_stay_strings():
    assert load_config(overrides=["data.source=1e3x"]).data.source == "1e3x"


def test_absolute_paths_keep_the_kind_of_the_source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["data.source=csv:a/log.csv", "data.items.path=items.csv", "data.data_dir=d"]
    data = load_config(overrides=options).with_absolute_paths().data
    assert data.source == f"csv:{tmp_path}/a/log.csv"
    assert data.items.path == f"{tmp_path}/items.csv"
    assert data.data_dir == f"{tmp_path}/d"
    built_in = load_config().with_absolute_paths().data
    assert (built_in.source, built_in.data_dir) == ("synthetic", None)
