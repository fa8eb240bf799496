"""The README's Python runs as it stands, and its commands exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._inductor import config as inductor_config
from typer.testing import CliRunner

from exprune_fx import zoo
from exprune_fx.cli.app import app
from tests.deploy.stranger import run_stranger

onnx = pytest.importorskip("onnx")

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning")  # torch.export.load of torch 2.11
def test_the_python_of_the_readme_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Block after block, as a reader would, each knowing what those before it named; `serve.py` on its own."""
    monkeypatch.chdir(tmp_path)
    every = zoo.calibration_batches()
    monkeypatch.setattr(zoo, "calibration_batches", lambda: every[: len(every) // 4])  # less time, the same calls
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    served = [block for block in blocks if block.startswith("# serve.py")]
    assert len(served) == 1
    known: dict[str, Any] = {}
    # The glue code of a package, unoptimised: that is most of the time that it takes to compile.
    with inductor_config.patch({"aot_inductor.compile_wrapper_opt_level": "O0"}):
        for block in blocks:
            if block not in served:
                exec(compile(block, "README.md", "exec"), known)
    printed = capsys.readouterr().out
    removed = float(printed.split("\n")[0])
    assert 0.3 < removed < 0.7
    for expected in ("features.4", "staged_conv2d_relu", "vgg.pt2 vgg.kernels.so"):
        assert expected in printed
    _check_files(known, served[0], tmp_path)


@torch.no_grad()
def _check_files(known: dict[str, Any], serve: str, folder: Path) -> None:
    """What the blocks wrote gives what the staged graph gives, each file in its own way."""
    images = known["zoo"].load_sample().test_images[:20]
    logits = known["staged"](images)
    assert torch.equal(known["again"](images), logits)
    assert re.fullmatch(r"tensor\(\[\d(, \d){4}\]\)\n", run_stranger(serve, folder))
    torch.save(images, folder / "images.pt")
    answer = 'import torch\nimages = torch.load("images.pt")\ntorch.set_num_threads(1)\n'
    kernels, package = 'torch.ops.load_library("vgg.kernels.so")\n', 'torch._inductor.aoti_load_package("vgg.pt2")'
    run_stranger(f"{answer}{kernels}torch.save({package}(images), 'out.pt')", folder, AOTI_RUNTIME_CHECK_INPUTS="1")
    # Inductor's kernels round the dense layers otherwise, which may turn a neuron on its threshold: see the README.
    assert torch.equal(torch.load(folder / "out.pt").argmax(1), logits.argmax(1))
    torch.testing.assert_close(torch.load(folder / "out.pt"), logits, rtol=1e-2, atol=1e-2)
    readable = torch.export.load(folder / "vgg_readable.pt2").module()(images)
    assert torch.equal(readable.argmax(1), logits.argmax(1))
    onnx.checker.check_model(str(folder / "vgg.onnx"), full_check=True)
    assert (folder / "vgg.html").read_text().startswith("<!")


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
