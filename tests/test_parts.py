"""The list of parts: every one that has a name, those of one's own included."""

import json

import pytest

from tfrs_negatives.cli.parts import list_parts
from tfrs_negatives.core import part as registry
from tfrs_negatives.core.errors import InputError
from tfrs_negatives.core.part import part, part_names
from tfrs_negatives.step.records import Miner
from tfrs_negatives.step.specs import Spec


@pytest.fixture
def slow_start(monkeypatch):
    monkeypatch.setitem(registry._FAMILIES, "miner", dict(registry._FAMILIES["miner"]))

    @part("miner")
    class SlowStart(Miner):
        """Lets a row keep one candidate more each epoch.

        And more that is not shown.
        """

        def __init__(self, items: object, steps: int, *, rates: "list[float] | None" = None):
            self.steps = steps


def test_a_part_of_ones_own_is_listed(slow_start):
    (record,) = [record for record in list_parts() if record["name"] == "slow_start"]
    assert record == {
        "family": "miner",
        "name": "slow_start",
        "summary": "Lets a row keep one candidate more each epoch.",
        "arguments": {"steps": "int", "rates": "list[float] or null = null"},
    }


def test_every_part_has_a_summary_and_is_printed(call, slow_start):
    code, printed, err = call("parts", "--json")
    assert code == 0, err
    records = json.loads(printed)
    assert records == list_parts()
    assert all(record["summary"].endswith((".", ":")) for record in records)
    code, text, _ = call("parts")
    lines = text.splitlines()
    assert lines[0] == "sampler"
    assert "  slow_start: Lets a row keep one candidate more each epoch." in lines
    assert "      steps: int" in lines
    for record in records:
        assert any(line.startswith(f"  {record['name']}: ") for line in lines)


def test_a_module_of_ones_own_is_imported_first(call, tmp_path, monkeypatch):
    monkeypatch.setitem(registry._FAMILIES, "loss", dict(registry._FAMILIES["loss"]))
    (tmp_path / "my_parts.py").write_text(
        "from tfrs_negatives.core.part import part\n"
        "from tfrs_negatives.step.records import Loss\n"
        "@part('loss')\n"
        "class MyLoss(Loss):\n"
        "    'A loss of my own.'\n"
    )
    monkeypatch.chdir(tmp_path)
    code, printed, err = call("parts", "my_parts")
    assert code == 0, err
    assert "  my_loss: A loss of my own." in printed.splitlines()
    assert "my_loss" in part_names("loss")
    assert call("parts", "no_such_parts")[0] == 2


def test_names_that_are_imported_for_annotations_only_are_found(tmp_path, monkeypatch):
    (tmp_path / "typed_parts.py").write_text(
        "from __future__ import annotations\n"
        "from typing import TYPE_CHECKING\n"
        "from tfrs_negatives.step.records import Loss\n"
        "if TYPE_CHECKING:\n"
        "    import collections.abc as abc\n"
        "    from tfrs_negatives.core.types import Similarity as Kind\n"
        "    from tfrs_negatives.step.records import Miner\n"
        "class Mixed(Loss):\n"
        "    def __init__(self, first: Miner | None, kind: Kind, ks: abc.Sequence[int] = ()): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    written = {"first": {"hardest": {"k": 2}}, "kind": "cosine", "ks": [1, 2]}
    spec = Spec.read("loss", {"typed_parts:Mixed": written}, "loss")
    assert spec.arguments["first"] == Spec.read("miner", {"hardest": {"k": 2}}, "first")
    assert (spec.arguments["kind"], spec.arguments["ks"]) == ("cosine", [1, 2])
    for name, wrong in {"first": 3, "kind": "round", "ks": ["a"]}.items():
        with pytest.raises(InputError, match=rf"`loss\.typed_parts:Mixed\.{name}"):
            Spec.read("loss", {"typed_parts:Mixed": {**written, name: wrong}}, "loss")


def test_an_annotation_that_nobody_can_find_is_said(tmp_path, monkeypatch):
    (tmp_path / "untyped_parts.py").write_text(
        "from __future__ import annotations\n"
        "from tfrs_negatives.step.records import Loss\n"
        "class Odd(Loss):\n"
        "    def __init__(self, kind: Nowhere): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=r"`untyped_parts:Odd.__init__`.*Nowhere"):
        Spec.read("loss", {"untyped_parts:Odd": {"kind": 3}}, "loss")
