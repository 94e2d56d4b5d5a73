"""The configuration: defaults, files, overrides, and one sentence for everything that is wrong."""

import inspect
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrs_negatives.core import part as registry
from tfrs_negatives.core.errors import InputError
from tfrs_negatives.core.part import find_part, part, part_names
from tfrs_negatives.model import recipes
from tfrs_negatives.model.composition import KEYS, Composition
from tfrs_negatives.runs.config import RunConfig, load_config
from tfrs_negatives.step.arguments import argument_types
from tfrs_negatives.step.records import Loss, Sampler
from tfrs_negatives.step.specs import Spec

CONFIGS = sorted(Path(__file__).parents[1].glob("benchmarks/*/configs/*.yaml"))


def test_defaults_without_a_file():
    assert load_config() == RunConfig()


def test_file_and_overrides_meet_and_overrides_win(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("train: {epochs: 3, batch_size: 64}\nmodel: {item_bias: true}\n")
    config = load_config(path, ["train.epochs=7", "data.source=lightgcn:there"])
    assert (config.train.epochs, config.train.batch_size) == (7, 64)
    assert config.model.item_bias
    assert config.data.source == "lightgcn:there"


def reread(config):
    return RunConfig.model_validate(yaml.safe_load(config.to_yaml()))


def test_resolved_yaml_reads_back_equal():
    config = load_config(overrides=["model.hidden=[64]", "task.correct=null"])
    assert reread(config).model_dump() == config.model_dump()
    assert config.model_dump()["task"]["correct"] is None


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
        ("model.similarity=euclid", "'dot', 'cosine' or 'euclidean'"),
        ("data.columns={age: {role: query, encoding: round}}", "`data.columns.age`, `encoding`"),
        (
            "data.columns={age: null}",
            "`data.columns.age`: expected a role with `encoding: left_out",
        ),
        ("task.recipe.num_uniform=-3", "`task.recipe.num_uniform`"),
        ("task.recipe.num_uniform=many", "`task.recipe.mixed_negative_sampling.num_uniform`"),
        ("task.recipe.num_unifrom=3", "perhaps `task.recipe.mixed_negative_sampling.num_uniform`"),
        ("task.recipe.capacity=3", "`task.recipe.mixed_negative_sampling.capacity`"),
        ("task.strength=2", "`task.strength`: expected a number in [0, 1]"),
        ("task.recipe=magic", "'in_batch', 'mixed_cross_batch_negative_sampling'"),
        ("task.recipe=in_bach", "perhaps `in_batch`"),
        ("task.recipe=null.5", "`task.recipe`"),
        ("task.negatives=[]", "`task.negatives`: expected at least one sampler"),
        ("task.negatives=in_batch", "`task.negatives`"),
        ("task.negatives=[in_batch, 3]", "`task.negatives[1]`: expected a sampler"),
        ("task.negatives=[in_batch, {in_batch: null, uniform: null}]", "`task.negatives[1]`"),
        (
            "task.negatives=[unform]",
            "`task.negatives[0]`: expected a known name, perhaps `uniform`",
        ),
        ("task.negatives=[hardest]", "`task.negatives[0]`"),
        ("task.negatives=[uniform]", "`task.negatives[0].uniform.num_negatives`: expected a value"),
        ("task.negatives=[{uniform: {num_negatives: 1.5}}]", "[0].uniform.num_negatives`"),
        ("task.negatives=[{uniform: {num_negatives: 3, items: 4}}]", "the run provides it"),
        ("task.negatives=[{uniform: 4}]", "`task.negatives[0].uniform`: expected a mapping"),
        ("task.negatives.uniform.num_negatives=0", "`task.negatives[1].uniform.num_negatives`"),
        ("task.negatives.cross_batch.capacity=9", "0 (in_batch), 1 (uniform)"),
        ("task.negatives.2.capacity=9", "0 (in_batch), 1 (uniform)"),
        ("task.negatives.uniform.num_negatives.more=9", "`task.negatives.uniform.num_negatives"),
        ("task.miners.k=9", "there is none"),
        ("task.miners=[{hardest: {k: 3, by: size}}]", "'logit' or 'score'"),
        ("task.miners=[{hardest: {k: 0}}]", "`task.miners[0].hardest.k`: expected at least 1"),
        ("task.miners=[{random_of_top: {k: 3, n: 2}}]", "`task.miners[0].random_of_top.n`"),
        ("task.loss=[bpr]", "`task.loss`: expected one part"),
        ("task.loss.hard_share=0.1", "`task.loss.sampled_softmax.hard_share`"),
        ("task.loss={easy_hard_mixture: {hard_share: 2}}", "`task.loss.easy_hard_mixture.hard_s"),
        ("task.masks=[score_margin]", "`task.masks[0].score_margin.absolute`"),
        ("task.frequency={streaming: {method: intervl}}", "`task.frequency.streaming.method`"),
        ("task.frequency=null", "`task.frequency`: expected an estimator"),
        ("task.lossy=bpr", "perhaps `task.loss`"),
        ("task.lossy.scale=1", "perhaps `task.loss`"),
        ("task=3", "`task`"),
        ("negatives.num_uniform=3", "`negatives`"),
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


# ------------------------------------------------------------------ what nothing reads


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["task.correct=null", "task.frequency=exact"], "`task.frequency`"),
        (["task.correct=null", "task.strength=0.5"], "`task.strength`"),
        (["task.recipe=dynamic_negative_sampling", "task.frequency=exact"], "`task.frequency`"),
        (["task.recipe=in_batch", "task.recipe.num_uniform=3"], "in_batch.num_uniform`"),
        (["task.recipe.num_uniform=3", "task.negatives=[in_batch]"], "`task.recipe.num_uniform`"),
        (["batches.cluster_size=4"], "`batches.cluster_size`"),
        (["batches.refresh_every=5"], "`batches.refresh_every`"),
        (["task.recipe=ngame", "batches.order=random", "batches.min_clusters=3"], "`batches.min"),
        (["train.unit_rows=true"], "`train.unit_rows`"),
    ],
)
def test_a_key_that_nothing_reads_is_an_error(overrides, says):
    with pytest.raises(InputError) as error:
        load_config(overrides=overrides)
    assert says in str(error.value)
    # Each of the keys before the last is right without it.
    load_config(overrides=overrides[:-1])


def test_a_recipe_brings_the_order_of_its_batches():
    assert load_config(overrides=["task.recipe=ngame"]).order == "clustered"
    assert load_config(overrides=["task.recipe=ngame", "batches.order=random"]).order == "random"
    shown = load_config(overrides=["task.recipe=ngame", "batches.cluster_size=4"]).model_dump()
    assert (shown["batches"]["order"], shown["batches"]["cluster_size"]) == ("clustered", 4)
    assert load_config().model_dump()["batches"] == {"order": "random"}


# ------------------------------------------------------------------ recipes and parts


def task_of(*overrides):
    return load_config(overrides=overrides).model_dump()["task"]


@pytest.mark.parametrize("name", part_names("recipe"))
def test_an_expansion_given_back_is_the_same_and_has_every_key(name):
    config = load_config(overrides=[f"task.recipe={name}"])
    assert reread(config).model_dump() == config.model_dump()
    assert list(config.model_dump()["task"]) == ["recipe", *KEYS]
    assert config.model_dump()["task"]["recipe"] is None


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_committed_configurations_are_read_and_given_back(path):
    config = load_config(path)
    assert reread(config).model_dump() == config.model_dump()


def test_a_recipe_and_what_takes_its_place():
    task = task_of("task.recipe={mixed_negative_sampling: {num_uniform: 7}}", "task.loss=bpr")
    assert task["negatives"] == ["in_batch", {"uniform": {"num_negatives": 7}}]
    assert task["loss"] == "bpr"
    # The copies of the positive follow the correction.
    assert task["masks"] == []
    assert task_of("task.correct=negatives")["masks"] == [
        {"accidental_hits": {"more_positives": None}}
    ]
    assert task_of("task.correct=null", "task.masks=[]")["masks"] == []


def test_a_name_alone_and_a_name_of_nothing_are_the_same(tmp_path):
    forms = ["bpr", "{bpr: null}", "{bpr: {}}"]
    assert len({str(task_of(f"task.loss={form}")) for form in forms}) == 1


UNIFORM_9 = ["in_batch", {"uniform": {"num_negatives": 9}}]


@pytest.mark.parametrize(
    "overrides",
    [
        ["task.recipe.num_uniform=9"],
        ["task.recipe.mixed_negative_sampling.num_uniform=9"],
        ["task.negatives.uniform.num_negatives=9"],
        ["task.negatives.1.num_negatives=9"],
        ["task.negatives[1].uniform.num_negatives=9"],
        ["task.negatives.uniform={num_negatives: 9}"],
        ["task.negatives.1={uniform: {num_negatives: 9}}"],
        # The arguments of what stands there in the end, in whatever order it is said.
        ["task.negatives.uniform.num_negatives=9", "task.recipe=mixed_negative_sampling"],
        ["task.recipe.num_uniform=5", "task.negatives.uniform.num_negatives=9"],
    ],
)
def test_an_argument_is_addressed_in_several_ways(overrides):
    assert task_of(*overrides)["negatives"] == UNIFORM_9
    config = load_config(overrides=overrides).with_overrides(["task.correct=null"])
    again = config.model_dump()["task"]
    assert (again["negatives"], again["frequency"]) == (UNIFORM_9, None)


def test_arguments_deep_inside_and_of_what_a_recipe_brings():
    inner = "{weighted: {sampler: {uniform: {num_negatives: 5}}, weight: 0.5}}"
    base = load_config(overrides=[f"task.negatives=[in_batch, {inner}]"])
    changed = base.with_overrides(["task.negatives.weighted.sampler.uniform.num_negatives=6"])
    assert changed.model_dump()["task"]["negatives"][1] == {
        "weighted": {"sampler": {"uniform": {"num_negatives": 6}}, "weight": 0.5}
    }
    config = load_config(overrides=["task.recipe=ngame"])
    (miner,) = config.with_overrides(["task.miners.within_positive_radius.slack=1.5"]).model_dump()[
        "task"
    ]["miners"]
    assert miner["within_positive_radius"]["slack"] == 1.5
    assert task_of("task.frequency.method=interval")["frequency"]["streaming"]["rate"] is None
    mixture = ["task.loss.hard_share=0.25", "task.loss=easy_hard_mixture"]
    assert task_of(*mixture)["loss"] == {"easy_hard_mixture": {"hard_share": 0.25}}


def test_two_parts_of_one_name_are_addressed_by_their_number():
    two = "task.negatives=[{uniform: {num_negatives: 2}}, {uniform: {num_negatives: 3}}]"
    negatives = task_of(two, "task.negatives.1.num_negatives=9")["negatives"]
    assert [part["uniform"]["num_negatives"] for part in negatives] == [2, 9]
    with pytest.raises(InputError, match=r"the number of the part: 0 \(uniform\), 1 \(uniform\)"):
        load_config(overrides=[two, "task.negatives.uniform.num_negatives=9"])


@pytest.mark.parametrize("name", part_names("recipe"))
def test_python_and_yaml_have_the_same_arguments_and_defaults(name):
    preset = find_part("recipe", name)
    written = {n: f.default for n, f in argument_types(preset).model_fields.items()}
    known = inspect.signature(getattr(recipes, name)).parameters
    assert written == {n: known[n].default for n in written}
    assert set(known) - set(written) <= {"items", "history", "options"}


# ------------------------------------------------------------------ parts of one's own


def test_a_part_that_is_registered_while_it_runs_has_a_name(monkeypatch):
    monkeypatch.setitem(registry._FAMILIES, "sampler", dict(registry._FAMILIES["sampler"]))

    @part("sampler")
    class BestSellers(Sampler):
        def __init__(self, items: object, share: float, *, steps: "int | None" = None):
            self.share = share

    (spec,) = Composition.read({"negatives": [{"best_sellers": {"share": 0.5}}]}).expansion.parts[
        "negatives"
    ]
    assert spec.write() == {"best_sellers": {"share": 0.5, "steps": None}}
    with pytest.raises(InputError, match="perhaps `best_sellers`"):
        load_config(overrides=["task.negatives=[best_seller]"])
    with pytest.raises(InputError, match=r"best_sellers\.shares`.*best_sellers\.share`"):
        load_config(overrides=["task.negatives=[{best_sellers: {shares: 0.5}}]"])


class Own(Loss):
    def __init__(self, scale: float = 1.0):
        self.scale = scale


def own_recipe(*, scale: float):
    return {"negatives": ["in_batch"], "loss": {f"{__name__}:Own": {"scale": scale}}}


def test_a_recipe_and_a_part_of_ones_own_are_named_by_their_module():
    name = f"{__name__}:own_recipe"
    task = task_of(f"task.recipe={{{name}: {{scale: 2.0}}}}", f"task.recipe.{name}.scale=3.0")
    assert task["loss"] == {f"{__name__}:Own": {"scale": 3.0}}
    for wrong in (f"{__name__}:Nobody", f"{__name__}:own_recipe", "nowhere:Own"):
        with pytest.raises(InputError, match=r"`task\.loss`"):
            load_config(overrides=[f"task.loss={wrong}"])
    with pytest.raises(InputError, match=rf"`task\.recipe\.{name}\.scale`: expected a value"):
        load_config(overrides=[f"task.recipe={name}"])


# ------------------------------------------------------------------ random compositions

COUNTS = st.integers(1, 50)
SAMPLERS = st.one_of(
    st.just("in_batch"),
    st.builds(lambda n: {"uniform": {"num_negatives": n}}, COUNTS),
    st.builds(
        lambda n, x: {"popularity": {"num_negatives": n, "exponent": x}}, COUNTS, st.floats(0, 2)
    ),
    st.builds(
        lambda n, d: {"cross_batch": {"capacity": n, "max_drift": d}},
        COUNTS,
        st.none() | st.floats(0.01, 1),
    ),
)
WEIGHTED = st.builds(
    lambda sampler, w: {"weighted": {"sampler": sampler, "weight": w}}, SAMPLERS, st.floats(0, 9)
)
TASKS = st.fixed_dictionaries(
    {},
    optional={
        "negatives": st.lists(SAMPLERS | WEIGHTED, min_size=1, max_size=4),
        "masks": st.lists(
            st.sampled_from(
                ["accidental_hits", "known_positives", {"score_margin": {"relative": 0.1}}]
            )
        ),
        "miners": st.lists(st.builds(lambda k: {"hardest": {"k": k}}, COUNTS)),
        "loss": st.sampled_from(["bpr", {"triplet_hinge": {"margin": 0.5}}, {"bpr": None}]),
        "correct": st.sampled_from(["both", "negatives", None]),
        "recipe": st.sampled_from([*part_names("recipe"), None]),
    },
)


PRESETS = {name: inspect.unwrap(find_part("recipe", name))() for name in part_names("recipe")}


def is_complete(task):
    """Recipes that bring no estimator leave other samplers without one."""
    preset = PRESETS.get(task.get("recipe", "mixed_negative_sampling"), {})
    corrected = task.get("correct", preset.get("correct", "both")) is not None
    counted = preset.get("frequency", "streaming") is not None
    return counted or not corrected or "negatives" not in task


@settings(deadline=None, max_examples=40)
@given(TASKS.filter(is_complete))
def test_random_compositions_go_through_yaml_and_back(task):
    config = RunConfig.model_validate({"task": task})
    assert reread(config).model_dump() == config.model_dump()
    shown = config.model_dump()["task"]
    for name in task.keys() - {"recipe"}:
        # Nothing that was said got lost.
        assert_within(task[name], shown[name])


def assert_within(said, shown):
    """What was written stands in what is shown, which may say more."""
    if isinstance(said, list):
        assert len(said) == len(shown)
        for one, other in zip(said, shown, strict=True):
            assert_within(one, other)
    elif isinstance(said, dict):
        ((name, arguments),) = said.items()
        known = shown.get(name, {}) if isinstance(shown, dict) else {}
        assert shown == name or name in shown
        for key, value in (arguments or {}).items():
            (assert_within if isinstance(value, dict) else check_equal)(value, known[key])
    else:
        assert said == shown or [said] == list(shown)


def check_equal(one, other):
    assert one == other


def test_specs_are_compared_by_what_they_say():
    read = [Spec.read("loss", data, "loss") for data in ("bpr", {"bpr": None})]
    assert read[0] == read[1]
