"""The README's example runs as it stands and prints what it says."""

import re
from pathlib import Path

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_example_runs(tmp_path, monkeypatch, capsys):
    code = re.search(r"```python\n(.*?)```", README, re.S).group(1)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})  # noqa: S102
    printed = capsys.readouterr().out.splitlines()[-1]
    pattern = r"recall at 100: 0\.\d\d, for the first user: \['item_\d+' 'item_\d+' 'item_\d+'\]"
    assert re.fullmatch(pattern, printed), printed
    shown = re.search(r"What it prints.*?```\n(.*?)```", README, re.S).group(1)
    assert re.fullmatch(pattern, shown.splitlines()[-1])
