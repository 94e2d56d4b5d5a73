"""The command line on a small CSV log: files, exit codes, one sentence per mistake."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tfrs_negatives.cli.main import main

SMALL = [
    "data.columns.user=query_id",
    "data.columns.age=query",
    "data.columns.item=item_id",
    "data.columns.time=time",
    "model.embedding_dim=4",
    "model.hidden=[8]",
    "model.output_dim=4",
    "task.recipe.num_uniform=16",
    "train.epochs=2",
    "train.batch_size=64",
    "evaluation.ks=[5]",
    "index.ks=[3, 5]",
]
LEFT_OUT = "data.columns.user={role: query_id, encoding: left_out}"


@pytest.fixture(scope="module")
def run_folder(log_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "first"
    arguments = ["train", "--out", str(folder), f"data.source=csv:{log_file}", *SMALL]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["tfrs-negatives", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
    assert not stop.value.code
    return folder


def test_help_does_not_import_tensorflow():
    program = (
        "import sys; sys.argv = ['tfrs-negatives', '--help']\n"
        "from tfrs_negatives.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "sys.exit('tensorflow' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "recommend" in result.stdout


def test_train_writes_the_whole_run(run_folder):
    names = {path.name for path in run_folder.iterdir()}
    assert names >= {"config.yaml", "metrics.json", "history.csv", "model.keras", "queries.parquet"}
    metrics = json.loads((run_folder / "metrics.json").read_text())
    assert 0 <= metrics["test"]["recall_at_5"] <= 1
    header, *rows = (run_folder / "history.csv").read_text().splitlines()
    assert header.startswith("epoch,loss")
    assert len(rows) == 2
    assert [path.name for path in run_folder.parent.iterdir()] == ["first"]


def test_evaluate_repeats_what_training_reported(call, run_folder):
    before = json.loads((run_folder / "metrics.json").read_text())
    code, out, _ = call("evaluate", run_folder, "--json")
    assert code == 0
    assert json.loads(out)["test"] == pytest.approx(before["test"])


def test_index_then_recommend(call, run_folder):
    code, _, err = call("recommend", run_folder, "u3")
    assert (code, "tfrs-negatives index" in err) == (2, True)
    code, out, _ = call("index", run_folder, "--json")
    assert code == 0
    assert json.loads(out)["num_items"] == 30
    code, out, _ = call("recommend", run_folder, "u3", "--k", "3", "--json")
    records = json.loads(out)
    assert (code, [r["rank"] for r in records]) == (0, [1, 2, 3])
    assert records[0]["score"] >= records[1]["score"] >= records[2]["score"]
    assert len({r["id"] for r in records}) == 3
    code, out, _ = call("recommend", run_folder, "u3", "--json")
    assert (code, len(json.loads(out))) == (0, 5)
    code, _, err = call("recommend", run_folder, "nobody", "--k", "3")
    assert code == 2
    assert "`query`" in err
    code, _, err = call("recommend", run_folder, "u3", "--k", "31")
    assert code == 2
    assert "`k`" in err


def test_the_same_seed_gives_the_same_metrics_in_any_directory(
    call, run_folder, log_file, tmp_path, monkeypatch
):
    monkeypatch.chdir(log_file.parent)
    source = f"data.source=csv:{log_file.name}"
    code, out, err = call("train", "--out", tmp_path / "run", "--json", source, *SMALL)
    assert code == 0, err
    before = json.loads((run_folder / "metrics.json").read_text())
    assert json.loads(out)["test"] == before["test"]
    assert json.loads(out)["loss"] == before["loss"]
    # The run knows its log from elsewhere too.
    monkeypatch.chdir(tmp_path)
    assert call("evaluate", "run", "--json")[0] == 0


def test_dry_run_prints_every_key_and_writes_nothing(call, tmp_path):
    code, out, _ = call("train", "--dry-run", "--out", tmp_path / "x", "train.epochs=3")
    assert code == 0
    assert "epochs: 3" in out
    assert "num_negatives: 2048" in out
    assert not list(tmp_path.iterdir())


def test_doctor_is_content_here(call):
    code, out, _ = call("doctor", "--json")
    assert code == 0, out
    assert {check["name"] for check in json.loads(out)} >= {"scann ops", "legacy keras"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["data.source=nowhere"], "source"),
        (["data.source=csv:gone.csv"], "gone.csv"),
        (["data.columns.item=null", "data.columns.thing=item_id"], "thing"),
        (["data.columns.shoe_size=query"], "shoe_size"),
        (["data.columns.shoe_size=shoes"], "shoe_size"),
        (["data.split=leave_last_out", "data.columns.time=null"], "timestamp"),
        (["data.min_rating=3"], "rating"),
        (["evaluation.ks=[31]"], "`evaluation.ks`"),
        (["evaluation.ks=[0]"], "`evaluation.ks`"),
        (["index.ks=[31]"], "`index.ks`"),
        (["task.recipe.num_uniform=-3"], "`task.recipe.num_uniform`"),
        (["data.columns.user={role: query_id, encoding: numeric}"], "user"),
        ([LEFT_OUT, "data.columns.age=null"], "features"),
        (["task.negatives.uniform.num_negatives=0"], "`task.negatives[1].uniform.num_negatives`"),
        (["train.seed=5000000000"], "`train.seed`"),
        (["train.epoch=3"], "perhaps `train.epochs`"),
        (["--config", "gone.yaml"], "gone.yaml"),
    ],
)
def test_bad_input_is_one_sentence_exit_code_2_and_nothing_written(
    call, log_file, tmp_path, arguments, says
):
    out = tmp_path / "run"
    code, printed, err = call(
        "train", "--out", out, f"data.source=csv:{log_file}", *SMALL, *arguments
    )
    assert code == 2, err
    assert says in err.splitlines()[-1]
    assert err.splitlines()[-1].startswith("error: `")
    assert printed == ""
    assert not list(tmp_path.iterdir())


def test_an_existing_run_is_kept_unless_told_otherwise(call, run_folder, log_file):
    before = (run_folder / "metrics.json").read_bytes()
    code, _, err = call("train", "--out", run_folder, f"data.source=csv:{log_file}", *SMALL)
    assert code == 2
    assert "--overwrite" in err
    assert (run_folder / "metrics.json").read_bytes() == before


def test_a_folder_that_cannot_be_written_is_named(call, log_file, tmp_path):
    (tmp_path / "file").write_text("in the way")
    code, _, err = call("train", "--out", tmp_path / "file" / "run", f"data.source=csv:{log_file}")
    assert code == 2
    assert "`run`" in err


@pytest.mark.slow
@pytest.mark.parametrize("role", ["query_id", "query"])
def test_a_run_without_query_key_or_with_a_feature_left_out(call, log_file, tmp_path, role):
    source = f"data.source=csv:{log_file}"
    options = [*SMALL, "train.epochs=1", "data.columns.age=null"]
    options.append(f"data.columns.user={role}")
    code, _, err = call("train", "--out", tmp_path / "run", source, *options)
    assert code == 0, err
    assert call("index", tmp_path / "run", "--json")[0] == 0
    code, _, err = call("recommend", tmp_path / "run", "u3", "--json")
    assert (code, "query_key" in err) == ((0, False) if role == "query_id" else (2, True))


@pytest.mark.parametrize(
    ("name", "command"),
    [("model.keras", "evaluate"), ("metrics.json", "evaluate"), ("queries.parquet", "index")],
)
def test_a_damaged_run_is_one_sentence(call, run_folder, tmp_path, name, command):
    damaged = tmp_path / "run"
    shutil.copytree(run_folder, damaged)
    (damaged / name).write_text("junk")
    code, _, err = call(command, damaged)
    assert code == 2, err
    assert err.splitlines()[-1].startswith("error: `run`")


def test_overwrite_replaces_runs_and_nothing_else(call, log_file, tmp_path):
    (tmp_path / "precious.txt").write_text("keep me")
    source = f"data.source=csv:{log_file}"
    code, _, err = call("train", "--out", tmp_path, "--overwrite", source, *SMALL)
    assert code == 2
    assert "`run`" in err
    assert (tmp_path / "precious.txt").read_text() == "keep me"


def test_a_folder_that_is_no_run_is_named(call, tmp_path):
    for command in (["evaluate", tmp_path], ["index", tmp_path], ["recommend", tmp_path, "u1"]):
        code, _, err = call(*command)
        assert code == 2
        assert "`run`" in err


ITEM_FILE = "item,year\n" + "".join(f"i{i},{1990 + i}\n" for i in range(30))
BAD_FILES = {
    "a float id": ("user,item,age,time\nu1,1.5,20,1\nu2,2.5,20,2\n", None, "item"),
    "a NaN feature": ("user,item,age,time\nu1,i1,nan,1\nu2,i2,20.5,2\n", None, "age"),
    "an empty cell": ("user,item,age,time\nu1,i1,,1\nu2,i2,20,2\n", None, "age"),
    "no event": ("user,item,age,time\n", None, "source"),
    "one event, an empty side": ("user,item,age,time\nu1,i1,20,1\n", None, "test"),
    "no CSV at all": ("\x00\x01\x02", None, "source"),
    "an item twice": (None, ITEM_FILE + "i3,1999\n", "i3"),
    "an unknown item": (None, ITEM_FILE.replace("i7,1997\n", ""), "i7"),
    "a catalogue without ids": (None, "name,year\na,1999\n", "item"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_one_sentence_exit_code_2_and_nothing_written(call, log_file, tmp_path, case):
    log, items, says = BAD_FILES[case]
    files, out = tmp_path / "files", tmp_path / "runs" / "run"
    files.mkdir()
    source, options = log_file, []
    if log is not None:
        source = files / "log.csv"
        source.write_text(log)
    if items is not None:
        (files / "items.csv").write_text(items)
        options = [f"data.items.path={files / 'items.csv'}"]
    small = [option for option in SMALL if not option.endswith("ks=[3, 5]")]
    arguments = [f"data.source=csv:{source}", *small, "index.ks=[1]", "evaluation.ks=[1]"]
    code, printed, err = call("train", "--out", out, *arguments, *options)
    assert code == 2, err
    assert says in err.splitlines()[-1]
    assert err.splitlines()[-1].startswith("error: `")
    assert printed == ""
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_mirrored_run_is_that_of_one_device(log_file, tmp_path):
    options = ["task.recipe=mixed_cross_batch_negative_sampling", "task.recipe.capacity=100"]
    command = [sys.executable, Path(__file__).with_name("mirrored_runs.py"), tmp_path]
    # Dropped ids differ by replica.
    command += [f"data.source=csv:{log_file}", *SMALL, *options, "model.id_dropout=0"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    one, two = (losses_of(tmp_path / name) for name in ("null", "mirrored"))
    assert len(one) == 2
    assert two == pytest.approx(one, rel=1e-5)
    assert [f"replicas {number}," in run.stderr for number in (1, 2)] == [True, True]


def losses_of(folder):
    lines = csv.DictReader((folder / "history.csv").read_text().splitlines())
    return [float(line["loss"]) for line in lines]
