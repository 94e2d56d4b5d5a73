"""`tfrs-negatives serve`: what it refuses before it answers anything, in one sentence each."""

import gc
import socket
import sys

import pytest
from serving_cases import open_fake, write_run

from tfrs_negatives.cli.serve import read_token
from tfrs_negatives.core.errors import InputError
from tfrs_negatives.serve.deployment import Deployment
from tfrs_negatives.serve.server import freeze_loaded


@pytest.fixture
def run_folder(tmp_path, monkeypatch):
    monkeypatch.setitem(Deployment.__init__.__kwdefaults__, "open_index", open_fake)
    monkeypatch.delenv("TFRS_NEGATIVES_TOKEN", raising=False)
    return write_run(tmp_path / "first")


def refused(call, *arguments):
    """The one sentence of an error."""
    code, _, errors = call("serve", *arguments, "--port", 0)
    assert code == 2
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in errors
    return line


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "example.org"])  # noqa: S104
def test_beyond_this_machine_a_token_is_needed(call, run_folder, monkeypatch, host):
    def listen(host, port):
        pytest.fail(f"it listens at {host}")

    monkeypatch.setattr("tfrs_negatives.serve.server.listen", listen)
    line = refused(call, run_folder, "--host", host)
    assert "--token-file or TFRS_NEGATIVES_TOKEN" in line
    assert f"{host} without one" in line


def test_a_token_from_a_file_or_the_environment(tmp_path):
    file = tmp_path / "token"
    file.write_text("of-a-file\n")
    variables = {"TFRS_NEGATIVES_TOKEN": "of-the-environment"}
    assert read_token(None, {}) is None
    assert read_token(None, variables) == "of-the-environment"
    assert read_token(file, variables) == "of-a-file"


@pytest.mark.parametrize("token", ["", "  \n", "two words", "t\xf6ken", "a\x00b", "a\nb"])
def test_a_token_that_no_header_carries_is_refused_and_not_repeated(tmp_path, token):
    file = tmp_path / "token"
    file.write_text(token)
    for place in ((file, {}), (None, {"TFRS_NEGATIVES_TOKEN": token})):
        with pytest.raises(InputError, match="one word of visible ASCII") as refusal:
            read_token(*place)
        assert not token.strip() or token not in str(refusal.value)


def test_a_token_file_that_cannot_be_read(call, run_folder, tmp_path):
    line = refused(call, run_folder, "--token-file", tmp_path / "none")
    assert "token_file" in line
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    assert "token_file" in refused(call, run_folder, "--token-file", tmp_path / "binary")


@pytest.mark.parametrize("missing", ["fastapi", "uvicorn", "prometheus_client"])
def test_without_what_it_needs_it_says_what_to_install(call, run_folder, monkeypatch, missing):
    for name in [name for name in sys.modules if name.startswith("tfrs_negatives.serve.")]:
        if not name.endswith(".command"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    line = refused(call, run_folder)
    assert "pip install 'tfrs-negatives[serve]'" in line
    assert f"no {missing}" in line


def test_a_folder_that_is_no_run_or_has_no_index(call, run_folder, tmp_path):
    assert "`tfrs-negatives index RUN`" in refused(call, tmp_path / "nothing")
    assert "`tfrs-negatives index RUN`" in refused(call, run_folder, "--beside", tmp_path)
    (run_folder / "items.parquet").unlink()
    assert "items.parquet" in refused(call, run_folder)


def test_a_tampered_export_is_refused_at_the_start(call, run_folder):
    file = run_folder / "index" / "vectors.npz"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    line = refused(call, run_folder)
    assert str(file) in line
    assert "SHA-256" in line


def test_an_address_that_is_taken(call, run_folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, errors = call("serve", run_folder, "--port", port)
    assert code == 2
    assert f"127.0.0.1:{port}" in errors


def test_help_says_what_it_does_and_what_a_restart_forgets(call):
    code, output, _ = call("serve", "--help")
    assert code == 0
    for text in ("--beside", "--token-file", "/recommend", "restart forgets", "127.0.0.1"):
        assert text in output


def test_what_is_loaded_is_spared_by_collections_and_what_was_left_behind_is_freed():
    freed = []

    class Ring:
        def __init__(self):
            self.me = self

        def __del__(self):
            freed.append(True)

    kept, left = Ring(), Ring()
    try:
        freeze_loaded()
        assert gc.get_freeze_count() > 1000
        del left
        gc.collect()
        assert freed == []
        freeze_loaded()
        assert freed == [True]
        assert kept.me is kept
    finally:
        gc.unfreeze()
