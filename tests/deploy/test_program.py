"""Exported programs: what operators they hold, that they equal the graph at every batch size, and as files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

import exprune_fx as ex
from exprune_fx.graph import python_text
from exprune_fx.guards import Bound, StatsTest
from exprune_fx.ops import native
from tests.deploy.models import images, staged_cnn
from tests.deploy.stranger import one_thread, run_stranger
from tests.passes.fused import need_operators
from tests.saving.models import MODELS, staged
from tests.saving.test_round_trip import Many, many


@pytest.fixture
def _operators(monkeypatch: pytest.MonkeyPatch) -> None:
    need_operators()
    monkeypatch.setattr(native, "available", lambda: True)


def operators(program: ExportedProgram) -> set[str]:
    return {str(node.target) for node in program.graph.nodes if isinstance(node.target, torch._ops.OpOverload)}


@pytest.mark.parametrize(("kind", "shape"), MODELS)
@pytest.mark.parametrize("guard", [Bound(), StatsTest(0.1)], ids=str)
def test_the_readable_form_becomes_aten(
    kind: type[nn.Module], shape: tuple[int, ...], guard: Bound | StatsTest
) -> None:
    """The same operators in the same order, spelled out: equal to the last bit."""
    _, graph, x = staged(kind, shape, guard=guard)
    assert "exprune.guard_" in python_text(graph)
    program = ex.export_program(graph)
    assert {name.partition(".")[0] for name in operators(program)} == {"aten"}
    assert "aten.linear.default" in operators(program)  # nothing else is taken apart
    with torch.no_grad():
        for batch in (x, x[:1], x[:2]):
            assert torch.equal(program.module()(batch), graph(batch))


@pytest.mark.usefixtures("_operators")
@pytest.mark.parametrize(("kind", "shape"), MODELS)
def test_the_lowered_form_calls_fused_operators(kind: type[nn.Module], shape: tuple[int, ...]) -> None:
    _, graph, x = staged(kind, shape, lower=True)
    program = ex.export_program(graph)
    assert any(name.startswith("exprune.staged_") for name in operators(program))
    with torch.no_grad():
        for batch in (x, x[:1], x[:2]):
            assert torch.equal(program.module()(batch), graph(batch))


@pytest.mark.usefixtures("_operators")
@pytest.mark.parametrize("lower", [False, True])
def test_coded_heads(lower: bool) -> None:
    _, graph, x = staged(*MODELS[0], lower=lower, coded=True)
    assert ("exprune.coded_conv" in python_text(graph)) is not lower
    program = ex.export_program(graph)
    assert any(name.startswith("exprune.staged_conv2d_relu") for name in operators(program)) is lower
    assert not any("coded_conv" in name for name in operators(program))
    with torch.no_grad():
        for batch in (x, x[:1], x[:2]):
            assert torch.equal(program.module()(batch), graph(batch))


def test_sizes_stay_symbolic_within_their_limits() -> None:
    x = torch.randn(4, 7, 6)
    gm = ex.capture(MODELS[2][0]().eval(), (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=3, max=9)},))
    program = ex.export_program(gm)
    assert [(int(limits.lower), int(limits.upper)) for limits in program.range_constraints.values()] == [(3, 9)]


def test_inputs_in_containers_and_by_keyword() -> None:
    auto, dims = torch.export.Dim.AUTO, {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    args, kwargs = many(3, 5)
    shapes = {"pair": (dims, {"added": {0: auto, 1: auto}}), "power": None, "mask": dims}
    gm = ex.capture(Many(), args, kwargs, dynamic_shapes=shapes)
    program = ex.export_program(gm)
    for rows, length in ((3, 5), (2, 9)):
        args, kwargs = many(rows, length)
        with torch.no_grad():
            assert torch.equal(program.module()(*args, **kwargs), gm(*args, **kwargs))


_LOAD = """
x, expected = torch.load("expected.pt")
for name in ("readable", "lowered"):
    if name == "lowered":
        torch.ops.load_library("lowered.kernels.so")
    model = torch.export.load(f"{name}.pt2").module()
    with torch.no_grad():
        for n in (5, 1, 3):
            assert torch.equal(model(x[:n]), expected[name, n]), (name, n)
"""


@pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning")  # torch.export.load of torch 2.11
@pytest.mark.usefixtures("_operators")
def test_files_load_where_this_library_is_not(tmp_path: Path) -> None:
    """The readable form anywhere; the lowered one with the library beside it."""
    expected: dict[tuple[str, int], Tensor] = {}
    x = images()[:5]
    for name, lower in (("readable", False), ("lowered", True)):
        graph = staged_cnn(lower=lower)
        ex.export_program(graph, tmp_path / f"{name}.pt2")
        with torch.no_grad(), one_thread():
            expected |= {(name, n): graph(x[:n]) for n in (5, 1, 3)}
    torch.save((x, expected), tmp_path / "expected.pt")
    assert {path.name for path in tmp_path.iterdir()} == {
        "expected.pt", "readable.pt2", "lowered.pt2", "lowered.kernels.so",
    }  # fmt: skip
    run_stranger(_LOAD, tmp_path)
    program = torch.export.load(tmp_path / "readable.pt2")
    with torch.no_grad():
        assert torch.equal(ex.capture(program)(x), expected["readable", 5])


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, graph, _ = staged(*MODELS[2])
    for path, message in ((tmp_path / "model.onnx", "end in .pt2"), (tmp_path / "no" / "model.pt2", "no directory")):
        with pytest.raises(ex.ExportError, match=message):
            ex.export_program(graph, path)

    def fail(_program: ExportedProgram, file: Path) -> None:
        file.write_bytes(b"half")
        raise OSError("no space left")

    (tmp_path / "model.pt2").write_bytes(b"old")
    monkeypatch.setattr(torch.export, "save", fail)
    with pytest.raises(OSError, match="no space left"):
        ex.export_program(graph, tmp_path / "model.pt2")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]
    assert (tmp_path / "model.pt2").read_bytes() == b"old"


def test_what_is_no_graph_of_this_library() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    with pytest.raises(ex.CaptureError, match="captured graph"):
        ex.export_program(model)  # type: ignore[arg-type] # on purpose
    with pytest.raises(ex.ExportError, match="was not captured"):
        ex.export_program(fx.symbolic_trace(model))
