"""The command line as people call it: what it prints, the JSON it writes, and how it fails."""

from __future__ import annotations

import dataclasses
import functools
import json
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.export import export, save
from typer.testing import CliRunner

from exprune_fx import zoo
from exprune_fx.bench import vgg
from exprune_fx.cli import names
from exprune_fx.cli.app import app
from exprune_fx.cli.experiment import EXPERIMENTS
from exprune_fx.cli.reproduce import DEFAULT_SIZES
from exprune_fx.static.folding import Constants
from exprune_fx.static.select import Ranking
from tests.report import tiny

HERE = "tests.test_cli"
IMAGES = 500


def call(*args: str) -> Any:
    return CliRunner().invoke(app, list(args))


# --- what the tests name on the command line --------------------------------------------------------------------------


def tiny_model() -> nn.Module:
    return tiny.Tiny()


def tiny_with_args() -> tuple[nn.Module, tuple[Tensor]]:
    return tiny.Tiny(), (tiny.examples()[0][0],)


def smooth_model() -> nn.Module:
    return tiny.Smooth()


def a_number() -> int:
    return 3


def broken() -> nn.Module:
    raise RuntimeError("no weights here")


# --- in general -------------------------------------------------------------------------------------------------------


def test_version() -> None:
    done = call("--version")
    assert (done.exit_code, done.output) == (0, f"exprune_fx {version('exprune_fx')}\n")


@pytest.mark.parametrize("how", [["-c", "from exprune_fx.cli import main; main()"], ["-m", "exprune_fx"]], ids=" ".join)
def test_the_console_script_runs(how: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, *how, "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"exprune_fx {version('exprune_fx')}\n"


@pytest.mark.parametrize("asked", [["--version"], ["--help"], ["reproduce", "--help"], ["explain"]], ids=" ".join)
def test_what_runs_no_model_imports_no_torch(asked: list[str]) -> None:
    """``--version`` and ``--help``, and a call that is wrong, answer at once."""
    code = (
        "import sys\nfrom exprune_fx.cli import main\ntry:\n    main()\nfinally:\n    sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, *asked], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout or done.stderr


def test_what_help_lists_is_what_there_is() -> None:
    assert set(names.SHIPPED) == set(zoo.names())
    assert names.CLASSIFIERS[-1] == vgg.NAME
    assert set(names.EXPERIMENTS) == set(EXPERIMENTS)
    assert set(names.SUBJECTS) == set(DEFAULT_SIZES)
    assert (get_args(Ranking), get_args(Constants)) == (names.RANKINGS, names.CONSTANTS)


@pytest.mark.parametrize("args", [["explain"], ["demo", "--budget", "many"], ["no-such-command"]])
def test_wrong_calls_have_status_2(args: list[str]) -> None:
    assert call(*args).exit_code == 2


# --- explain ----------------------------------------------------------------------------------------------------------


def test_explain_a_callable() -> None:
    done = call("explain", f"{HERE}:tiny_model", "--input-shape", "1,8")
    assert done.exit_code == 0, done.output
    assert "2 sites found, 2 can be staged" in done.output
    assert "axis 1 of the model's input x" in done.output


def test_explain_writes_json_and_a_page(tmp_path: Path) -> None:
    figures, page = tmp_path / "figures.json", tmp_path / "page.html"
    done = call("explain", f"{HERE}:tiny_with_args", "--budget", "0.1", "--json", str(figures), "--html", str(page))
    assert done.exit_code == 0, done.output
    data = json.loads(figures.read_text())
    assert data["library"] == version("exprune_fx")
    assert data["staged"] is True
    assert (data["totals"]["examples"], data["totals"]["calibration_examples"]) == (0, 32)
    assert [site["name"] for site in data["sites"]] == ["first", "second"]
    assert page.read_text().startswith("<!DOCTYPE html>")


def test_explain_an_exported_program(tmp_path: Path) -> None:
    path = tmp_path / "tiny.pt2"
    save(export(tiny.Tiny().eval(), (torch.zeros(2, 8),)), path)
    done = call("explain", str(path))
    assert done.exit_code == 0, done.output
    assert "2 sites found, 2 can be staged" in done.output


def test_explain_says_that_nothing_is_found() -> None:
    done = call("explain", f"{HERE}:smooth_model", "--input-shape", "1,4")
    assert done.exit_code == 0, done.output
    assert "No site was found" in done.output


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        (["nonsense"], 2, "'nonsense' names no model"),
        ([f"{HERE}:tiny_model", "--input-shape", "1,x"], 2, "'1,x' is no shape"),
        ([f"{HERE}:tiny_model", "--input-shape", "1,0"], 2, "'1,0' is no shape"),
        ([f"{HERE}:tiny_model", "--input-shape", "1,8", "--budget", "1.5"], 2, "--budget 1.5"),
        ([f"{HERE}:tiny_model", "--json", "/no/such/folder/f.json"], 2, "/no/such/folder/f.json"),
        (["no_such_module:model"], 1, "ModuleNotFoundError"),
        ([f"{HERE}:missing"], 1, "AttributeError"),
        ([f"{HERE}:broken"], 1, "no weights here"),
        ([f"{HERE}:a_number"], 1, "returned a int"),
        ([f"{HERE}:tiny_model"], 1, "without example inputs"),
        ([f"{HERE}:tiny_model", "--input-shape", "1,9"], 1, "could not be exported"),
        ([f"{HERE}:tiny_model", "--input-shape", "1,8", "--budget", "0.1"], 1, "no real examples"),
        (["missing.pt2"], 1, "there is no file 'missing.pt2'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_explain_fails_in_one_line(args: list[str], status: int, message: str) -> None:
    done = call("explain", *args)
    assert done.exit_code == status
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("exprune: error: ")
    assert message in done.stderr


def test_a_file_that_is_no_program(tmp_path: Path) -> None:
    path = tmp_path / "junk.pt2"
    path.write_bytes(b"not an archive")
    done = call("explain", str(path))
    assert done.exit_code == 1
    assert "is no exported program" in done.stderr


# --- demo -------------------------------------------------------------------------------------------------------------


@functools.cache
def demonstrated() -> tuple[str, dict[str, Any]]:
    """What ``exprune demo`` printed and wrote for one model and a quarter of the images; run once for all tests."""
    sample = zoo.load_sample()
    fewer = zoo.Sample(*(getattr(sample, field.name)[:IMAGES] for field in dataclasses.fields(sample)))
    with tempfile.TemporaryDirectory() as folder, mock.patch("exprune_fx.cli.demo.load_sample", return_value=fewer):
        path = Path(folder) / "demo.json"
        done = call("demo", "--model", "vgg_fashion", "--json", str(path))
        assert done.exit_code == 0, done.output
        return done.output, json.loads(path.read_text())


def test_demo_prints_both_accuracies_and_on_how_many_images() -> None:
    printed, data = demonstrated()
    (model,) = data["models"]
    assert f"{IMAGES} test images" in printed
    assert "no fine-tuning" in printed
    for accuracy in (model["accuracy_dense"], model["accuracy_staged"]):
        assert f"{100 * accuracy:.2f} %" in printed
    assert all(site["name"] in printed for site in model["sites"] if site["head"] != "dense")


def test_demo_saves_flops_at_the_same_accuracy() -> None:
    (model,) = demonstrated()[1]["models"]
    assert model["accuracy_dense"] > 0.93
    assert model["accuracy_staged"] > model["accuracy_dense"] - 0.01
    assert 1 - (model["flops_staged"] + model["flops_overhead"]) / model["flops_dense"] > 0.4


def test_demo_json_adds_up() -> None:
    data = demonstrated()[1]
    (model,) = data["models"]
    assert (data["library"], data["torch"]) == (version("exprune_fx"), torch.__version__)
    assert (model["name"], model["examples"], data["calibration_examples"]) == ("vgg_fashion", IMAGES, IMAGES)
    assert data["fine_tuning"] is False
    for entry in (model, *model["sites"], *model["curves"]):
        assert {type(entry[f"flops_{kind}"]) for kind in ("dense", "staged", "overhead")} == {float}
        total = entry["flops_staged"] + entry["flops_overhead"]
        assert entry["fraction_removed"] == pytest.approx(1 - total / entry["flops_dense"])
    assert model["flops_dense_per_example"] == pytest.approx(model["flops_dense"] / IMAGES)
    saved = sum(site["flops_dense"] - site["flops_staged"] for site in model["sites"])
    assert model["flops_dense"] - model["flops_staged"] == pytest.approx(saved)
    assert model["flops_overhead"] == pytest.approx(sum(site["flops_overhead"] for site in model["sites"]))


def test_demo_lists_every_site_with_what_was_decided() -> None:
    (model,) = demonstrated()[1]["models"]
    assert [site["head"] for site in model["sites"]].count("dense") >= 1  # the first convolution sees one channel
    for site in model["sites"]:
        assert site["reason"]
        assert (site["guard"] is None) == (site["head"] == "dense")
        assert len(site["alive_fraction"]) == (len(site["stages"]) if site["guard"] else 0)
        assert all(0 <= fraction <= 1 for fraction in site["alive_fraction"])


def test_demo_compares_rules() -> None:
    (model,) = demonstrated()[1]["models"]
    assert [point["guard"] for point in model["curves"]] == ["StatsTest(0.1)", "Threshold(-0.003)"]
    for point in model["curves"]:
        drop = 100 * (model["accuracy_dense"] - point["accuracy"])
        assert point["drop_points"] == pytest.approx(drop)


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        (["--model", "alexnet"], 1, "the zoo has no model 'alexnet'"),
        (["--budget", "-1"], 2, "--budget -1"),
        (["--json", "/no/such/folder/f.json"], 2, "/no/such/folder/f.json"),
        (["--model", "vgg_fashion", "--data-dir", "no-such-folder"], 1, "no-such-folder"),
    ],
    ids=["model", "budget", "json", "data"],
)
def test_demo_fails_in_one_line(args: list[str], status: int, message: str) -> None:
    done = call("demo", *args)
    assert done.exit_code == status
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
