"""What must not be saved, and files and models that must not be loaded; each error says what to do."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

import exprune_fx as ex
from exprune_fx.guards import Calibrated
from tests.passes.staging import GatedNet, ResidualNet, SquaredNet, plan_for
from tests.saving.models import fresh, staged


@functools.cache
def squared() -> fx.GraphModule:
    return staged(SquaredNet, (7, 6))[1]


@functools.cache
def written() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        ex.save(squared(), Path(folder) / "staged.pt")
        return (Path(folder) / "staged.pt").read_bytes()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    (tmp_path / "staged.pt").write_bytes(written())
    return tmp_path / "staged.pt"


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_a_truncated_file(saved: Path, kept: float) -> None:
    whole = saved.read_bytes()
    saved.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(ex.SaveError, match=r"truncated, damaged.*\n.*write it again"):
        ex.load(fresh(SquaredNet), saved)


def test_a_flipped_bit_in_a_weight(saved: Path) -> None:
    whole = bytearray(saved.read_bytes())
    weight = torch.load(saved, weights_only=True)["state_dict"]["fc2.weight"]
    place = bytes(whole).index(weight.numpy().tobytes())
    whole[place + 5] ^= 1
    saved.write_bytes(bytes(whole))
    with pytest.raises(ex.SaveError, match="checksum"):
        ex.load(fresh(SquaredNet), saved)


def test_the_sums_are_written_where_somebody_switched_them_off(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        ex.save(squared(), tmp_path / "staged.pt")
        assert not torch.serialization.get_crc32_options()
    finally:
        torch.serialization.set_crc32_options(True)
    assert ex.load(fresh(SquaredNet), tmp_path / "staged.pt")(torch.zeros(5, 7, 6)).shape == (5, 7, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "format version 2, this library reads 1"),
        ({"format": "exprune-plan"}, "no file of exprune_fx.save"),
        ({"state_dict": {"fc1.weight": 3}}, "are not tensors"),
        ({"signature": 3}, "damaged: TypeError"),
        ({"graph": None, "torch": None}, "damaged: TypeError"),
    ],
)
def test_a_file_with_other_content(saved: Path, change: dict[str, Any], message: str) -> None:
    torch.save(torch.load(saved, weights_only=True) | change, saved)
    with pytest.raises(ex.SaveError, match=message):
        ex.load(fresh(SquaredNet), saved)


def test_a_signature_that_cannot_be_read(saved: Path) -> None:
    """Written by a process that knew containers which this one does not, say."""
    torch.save(torch.load(saved, weights_only=True) | {"signature": {"tree": "[1, {}]", "leaves": []}}, saved)
    with pytest.raises(ex.CaptureError, match="how the graph is called cannot be read"):
        ex.load(fresh(SquaredNet), saved)


def test_a_corrupt_plan_in_it(saved: Path) -> None:
    torch.save(torch.load(saved, weights_only=True) | {"plan": {"format": "exprune-plan", "version": 99}}, saved)
    with pytest.raises(ex.PlanError, match="version 99"):
        ex.load(fresh(SquaredNet), saved)


def test_something_else(tmp_path: Path) -> None:
    with pytest.raises(ex.SaveError, match="there is no file"):
        ex.load(fresh(SquaredNet), tmp_path / "absent.pt")
    torch.save(fresh(SquaredNet).state_dict(), tmp_path / "weights.pt")
    with pytest.raises(ex.SaveError, match="no file of exprune_fx"):
        ex.load(fresh(SquaredNet), tmp_path / "weights.pt")
    (tmp_path / "plan.json").write_text(json.dumps(ex.Plan().to_dict()))
    torch.save(fresh(SquaredNet), tmp_path / "pickled.pt")
    for name in ("plan.json", "pickled.pt"):
        with pytest.raises(ex.SaveError, match="no file of exprune_fx"):
            ex.load(fresh(SquaredNet), tmp_path / name)


def test_a_file_that_cannot_be_written_leaves_the_old_one(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def fail(_data: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left")

    with pytest.raises(ex.SaveError, match="cannot write"):
        ex.save(squared(), saved.parent / "absent" / "staged.pt")
    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(ex.SaveError, match="no space left"):
        ex.save(squared(), saved)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == ["staged.pt"]


# --- models -----------------------------------------------------------------------------------------------------------


class Wider(SquaredNet):
    """SquaredNet with one layer of another width and one more layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc2, self.fc3, self.fc4 = nn.Linear(16, 20), nn.Linear(20, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc4(super().forward(x))
        return out


class Cubed(SquaredNet):
    """The tensors of SquaredNet, and another function."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc3(self.fc2(self.fc1(x)).relu() ** 3)
        return out


@pytest.mark.parametrize(
    ("make", "differences"),
    [
        (
            lambda: fresh(Wider),
            ["'fc2.weight' is float32[20, 16] in the model, float32[24, 16] in the file", "'fc4.bias' is in the model"],
        ),
        (
            lambda: fresh(GatedNet),
            ["'fc1.weight' is in the file, not in the model", "'up.bias' is in the model, not in"],
        ),
        (lambda: fresh(Cubed), ["file:  pow = aten.pow.Tensor_Scalar(relu, 2)", "(relu, 3)"]),
        (lambda: fresh(SquaredNet).double(), ["float64[16, 6] in the model, float32[16, 6] in the file"]),
    ],
)
def test_another_model(saved: Path, make: Callable[[], nn.Module], differences: list[str]) -> None:
    """Captured by its user where the file's inputs do not fit it."""
    model = make()
    dtype = next(model.parameters()).dtype
    gm = ex.capture(model, (torch.zeros(5, 7, 6, dtype=dtype),), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    with pytest.raises(ex.SaveError, match="was made of another model") as error:
        ex.load(gm, saved)
    for difference in differences:
        assert difference in str(error.value)


def test_a_model_that_cannot_be_called_so(saved: Path) -> None:
    with pytest.raises(ex.CaptureError, match="could not be exported"):
        ex.load(nn.Conv2d(3, 3, 3), saved)
    with pytest.raises(ex.SaveError, match="is a staged graph"):
        ex.load(squared(), saved)
    with pytest.raises(ex.CaptureError, match="cannot capture a str"):
        ex.load("model", saved)  # type: ignore[arg-type] # on purpose


def test_another_torch_may_spell_the_graph_otherwise(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = torch.load(saved, weights_only=True)
    torch.save(data | {"graph": data["graph"].replace("relu", "relu_renamed"), "torch": "2.11.0"}, saved)
    loaded = ex.load(fresh(SquaredNet), saved)
    assert "which wrote the file, did" in caplog.text
    assert loaded(torch.zeros(5, 7, 6)).shape == (5, 7, 4)


class Point(tuple[Tensor, Tensor]):
    """A container of the user's that torch can flatten but has no text for."""


pytree.register_pytree_node(
    Point,
    lambda point: (list(point), None),
    lambda items, _: Point(items),
    flatten_with_keys_fn=lambda point: ([(pytree.SequenceKey(i), x) for i, x in enumerate(point)], None),
)


class OfPoint(SquaredNet):
    """Called with a container of the user's."""

    def forward(self, point: Point) -> Tensor:  # type: ignore[override] # another input
        return super().forward(point[0] + point[1])


def test_inputs_that_no_file_can_hold(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A warning when it is saved, an error that asks for the inputs, and with them it loads."""
    point = Point((torch.randn(5, 7, 6), torch.randn(5, 7, 6)))
    gm = ex.capture(fresh(OfPoint).eval(), (point,))
    graph = ex.transform(gm, plan_for(ex.normalise(gm), Calibrated(0.1)), lower=False)
    ex.save(graph, tmp_path / "staged.pt")
    assert "load will need example args" in caplog.text
    with pytest.raises(ex.SaveError, match=r"does not say how the model is called.*\n.*load\(model, path, args"):
        ex.load(fresh(OfPoint), tmp_path / "staged.pt")
    with torch.no_grad():
        assert torch.equal(ex.load(fresh(OfPoint), tmp_path / "staged.pt", (point,))(point), graph(point))


# --- graphs -----------------------------------------------------------------------------------------------------------


def _train(model: nn.Module, _graph: fx.GraphModule) -> None:
    with torch.no_grad():
        model.get_parameter("conv1.weight").add_(0.1)


def _fine_tune(_model: nn.Module, graph: fx.GraphModule) -> None:
    with torch.no_grad():
        graph.get_parameter("conv1.folded_weight").mul_(1.01)


def _derived(_model: nn.Module, graph: fx.GraphModule) -> None:
    name = next(name for name, _ in graph.named_buffers() if name.endswith("principal_up"))
    graph.get_buffer(name).mul_(1.01)


def _convert(_model: nn.Module, graph: fx.GraphModule) -> None:
    graph.double()


def _edit(_model: nn.Module, graph: fx.GraphModule) -> None:
    relu = next(node for node in graph.graph.nodes if node.target is torch.ops.aten.max_pool2d.default)
    relu.args = (relu.args[0], [2, 2], [1, 1])


@pytest.mark.parametrize("change", [_train, _fine_tune, _derived, _convert, _edit])
def test_what_was_changed_after_transform(change: Callable[[nn.Module, fx.GraphModule], None], tmp_path: Path) -> None:
    model, graph, _ = staged(ResidualNet, (3, 8, 8), principal=True)
    change(model, graph)
    with pytest.raises(ex.SaveError, match=r"changed after transform(.|\n)*transform the captured model again"):
        ex.save(graph, tmp_path / "staged.pt")
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_staged(tmp_path: Path) -> None:
    model = fresh(SquaredNet)
    with pytest.raises(ex.CaptureError, match="captured graph"):
        ex.save(model, tmp_path / "staged.pt")  # type: ignore[arg-type] # on purpose
    with pytest.raises(ex.SaveError, match=r"not staged(.|\n)*transform"):
        ex.save(ex.capture(model, (torch.zeros(5, 7, 6),)), tmp_path / "staged.pt")
