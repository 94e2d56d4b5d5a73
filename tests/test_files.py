"""Files and folders that are there completely or not at all."""

import csv
import io
import subprocess
import sys
import threading

import pytest

from tfrs_negatives.core import files
from tfrs_negatives.core.errors import InputError


def make(folder, text):
    folder.mkdir()
    (folder / "a.txt").write_text(text)
    return folder


def test_a_folder_that_is_replaced_is_never_missing(tmp_path):
    target, missing, done = make(tmp_path / "target", "0"), [], threading.Event()

    def watch():
        while not done.is_set():
            if not (target / "a.txt").exists():
                missing.append(1)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for number in range(1, 300):
        files.put_in_place(make(tmp_path / "draft", str(number)), target)
    done.set()
    watcher.join()
    assert missing == []
    assert (target / "a.txt").read_text() == "299"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


@pytest.mark.parametrize("can_exchange", [True, False])
def test_the_new_folder_takes_the_name_and_the_old_one_goes(tmp_path, monkeypatch, can_exchange):
    if not can_exchange:
        monkeypatch.setattr(files, "_exchanged", lambda first, second: False)
    for text in ("first", "second"):
        files.put_in_place(make(tmp_path / "draft", text), tmp_path / "target")
        assert (tmp_path / "target" / "a.txt").read_text() == text
        assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_what_a_killed_process_left_between_two_renames_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_exchanged", lambda first, second: False)
    make(tmp_path / ".target.old", "old")
    files.put_in_place(make(tmp_path / "draft", "new"), tmp_path / "target")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


HOLDER = """
import sys, time
from pathlib import Path
from tfrs_negatives.core.files import locked
with locked(Path(sys.argv[1]), argument="run", expected="a run of its own"):
    print("inside", flush=True)
    time.sleep(100)
"""


def test_a_lock_keeps_other_processes_out_until_its_own_is_killed(tmp_path):
    path = tmp_path / ".lock"
    with subprocess.Popen([sys.executable, "-c", HOLDER, path], stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"inside\n"
        refused = files.locked(path, argument="run", expected="a run of its own")
        with pytest.raises(InputError, match=r"^`run`: expected a run of its own"), refused:
            pass
        holder.kill()
    with files.locked(path, argument="run", expected="a run of its own"):
        pass


def test_a_table_of_texts_comes_back_from_csv(tmp_path):
    rows = [{"a": "1,5", "b": 'say "no"'}, {"a": "two\nlines"}]
    found = list(csv.DictReader(io.StringIO(files.to_csv(rows, ["a", "b"]), newline="")))
    assert found == [rows[0], {"a": "two\nlines", "b": ""}]
