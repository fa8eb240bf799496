"""The README's Python runs as it stands, and its commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from exprune_fx.cli.app import app

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_python_of_the_readme_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    removed = float(printed.split("\n")[0])
    assert 0.3 < removed < 0.7
    assert "features.4" in printed


@pytest.mark.parametrize("command", sorted(set(re.findall(r"exprune (demo|explain|bench)", README))))
def test_the_commands_and_options_of_the_readme_exist(command: str) -> None:
    shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert shown.exit_code == 0
    options = {
        "demo": {"--curves", "--data-dir", "--json"},
        "explain": set(),
        "bench": {
            "--rows", "--model", "--batch", "--dtype", "--threads", "--checkpoints", "--data-dir", "--json", "--quick",
        },
    }[command]  # fmt: skip
    assert options <= set(re.findall(r"--[a-z-]+", README))
    assert all(option in shown.output for option in options)
