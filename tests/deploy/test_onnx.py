"""ONNX files: standard operators only, and onnxruntime gives what the readable form gives."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import exprune_fx as ex
from exprune_fx.guards import Bound, FinitePopulation
from exprune_fx.ops import native
from tests.deploy.models import images, staged_cnn, staged_opt_layer
from tests.passes.fused import need_operators
from tests.saving.models import MODELS, staged

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def session(path: Path) -> Any:
    onnx.checker.check_model(str(path), full_check=True)
    assert {opset.domain for opset in onnx.load(path).opset_import} == {""}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(model: Any, x: Tensor) -> Tensor:
    return torch.from_numpy(model.run(None, {model.get_inputs()[0].name: x.numpy()})[0])


@torch.no_grad()
def distances(graph: fx.GraphModule, model: Any, x: Tensor) -> Tensor:
    """Of each example, the largest difference."""
    difference: Tensor = run(model, x) - graph(x)
    return difference.abs().flatten(1).amax(1)


def test_bound_on_real_images(tmp_path: Path) -> None:
    """What is proved changes no output, so that rounding may decide either way: 1e-4 on every image."""
    graph = staged_cnn(Bound(), lower=False)
    ex.export_onnx(graph, tmp_path / "cnn.onnx")
    model = session(tmp_path / "cnn.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["cnn.onnx"]
    for part in (*images().split(150), images()[:1]):
        assert float(distances(graph, model, part).max()) < 1e-4


def test_calibrated_on_real_images(tmp_path: Path) -> None:
    """A neuron whose partial sum lies on its threshold to the last bit may stop in one of the two only: rarely."""
    graph = staged_cnn(lower=False)
    ex.export_onnx(graph, tmp_path / "cnn.onnx")
    model = session(tmp_path / "cnn.onnx")
    distance = torch.cat([distances(graph, model, part) for part in images().split(150)])
    assert float((distance > 1e-4).float().mean()) < 0.01
    assert float(distance.max()) < 0.1  # logits are of order 10
    with torch.no_grad():
        assert torch.equal(run(model, images()).argmax(1), graph(images()).argmax(1))


@pytest.mark.parametrize(("kind", "shape"), MODELS[:2])
def test_squares_residuals_and_gates(kind: type[nn.Module], shape: tuple[int, ...], tmp_path: Path) -> None:
    _, graph, x = staged(kind, shape, guard=FinitePopulation(0.1))
    ex.export_onnx(graph, tmp_path / "model.onnx")
    model = session(tmp_path / "model.onnx")
    for batch in (x, x[:1]):
        assert float(distances(graph, model, batch).max()) < 1e-4  # outputs are of order 10; no neuron on its threshold


def test_coded_heads(tmp_path: Path) -> None:
    """Sums of whole numbers are exact there too."""
    _, graph, x = staged(*MODELS[0], coded=True)
    assert "coded_conv" in graph.code
    ex.export_onnx(graph, tmp_path / "model.onnx")
    model = session(tmp_path / "model.onnx")
    for batch in (x, x[:1], x[:3]):
        assert float(distances(graph, model, batch).max()) < 1e-4  # outputs are of order 10


def test_the_lowered_form_is_written_from_its_readable_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need_operators()
    monkeypatch.setattr(native, "available", lambda: True)
    graph, hidden = staged_opt_layer(lower=True)
    ex.export_onnx(graph, tmp_path / "layer.onnx")
    model = session(tmp_path / "layer.onnx")
    for some in (hidden, hidden[:1, :4]):
        assert float(distances(graph, model, some).max()) < 1e-4


def test_without_the_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("exprune_fx.deploy.onnx_file.find_spec", lambda name: None if name == "onnx" else find(name))
    with pytest.raises(ex.ExportError, match=r"ONNX needs onnx\n.*exprune_fx\[onnx\]"):
        ex.export_onnx(staged(*MODELS[2])[1], tmp_path / "model.onnx")
    with pytest.raises(ex.ExportError, match=r"end in \.onnx"):
        ex.export_onnx(staged(*MODELS[2])[1], tmp_path / "model.pt2")


def test_an_operator_that_onnx_lacks(tmp_path: Path) -> None:
    class Lacking(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = torch.special.bessel_j0(x)
            return result

    with pytest.raises(ex.ExportError, match=r"cannot be written as ONNX(.|\n)*bessel_j0"):
        ex.export_onnx(ex.capture(Lacking(), (torch.randn(3, 4),)), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
