"""What is saved comes back: the same bits on a fresh model, in either form, in a fresh process."""

from __future__ import annotations

import copy
import gc
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import exprune_fx as ex
from exprune_fx.graph import python_text, tensor_at, tensor_names
from exprune_fx.guards import Bound, Calibrated, Guard
from exprune_fx.ops import native
from exprune_fx.pipeline import readable_form, record_of
from tests.passes.fused import need_operators
from tests.passes.staging import GatedNet, ResidualNet, SquaredNet, plan_for
from tests.saving.models import MODELS, fresh, reordered_plan, staged


@pytest.fixture
def _operators(monkeypatch: pytest.MonkeyPatch) -> None:
    need_operators()
    monkeypatch.setattr(native, "available", lambda: True)


def assert_comes_back(kind: type[nn.Module], saved: torch.fx.GraphModule, x: Tensor, path: Path) -> None:
    ex.save(saved, path)
    model = fresh(kind)
    before = copy.deepcopy(model.state_dict())
    loaded = ex.load(model, path)
    assert python_text(loaded) == python_text(saved)
    with torch.no_grad():
        for batch in (x, x[:1], x[:3]):
            assert torch.equal(loaded(batch), saved(batch))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize(("kind", "shape"), MODELS)
@pytest.mark.parametrize(("guard", "principal"), [(Calibrated(0.1), True), (Bound(), False)])
def test_the_readable_form(
    kind: type[nn.Module], shape: tuple[int, ...], guard: Guard, principal: bool, tmp_path: Path
) -> None:
    _, graph, x = staged(kind, shape, guard=guard, principal=principal)
    assert_comes_back(kind, graph, x, tmp_path / "staged.pt")


@pytest.mark.usefixtures("_operators")
@pytest.mark.parametrize(("kind", "shape"), MODELS)
def test_the_lowered_form_and_the_readable_form_of_it(
    kind: type[nn.Module], shape: tuple[int, ...], tmp_path: Path
) -> None:
    _, graph, x = staged(kind, shape, lower=True, principal=True)
    assert "exprune.staged_" in python_text(graph)
    assert_comes_back(kind, graph, x, tmp_path / "lowered.pt")
    readable = readable_form(graph)
    assert "exprune.staged_" not in python_text(readable)
    assert_comes_back(kind, readable, x, tmp_path / "readable.pt")


@pytest.mark.usefixtures("_operators")
@pytest.mark.parametrize("lower", [False, True])
def test_coded_heads(lower: bool, tmp_path: Path) -> None:
    """Codes are no tensors of the model: they are made again of its weights."""
    _, graph, x = staged(ResidualNet, (3, 8, 8), lower=lower, coded=True)
    assert "codes" in python_text(graph)
    assert_comes_back(ResidualNet, graph, x, tmp_path / "coded.pt")
    names = torch.load(tmp_path / "coded.pt", weights_only=True)["state_dict"]
    assert not [name for name in names if "code" in name]


@pytest.mark.usefixtures("_operators")
def test_where_there_are_no_kernels_the_readable_form_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, graph, x = staged(ResidualNet, (3, 8, 8), lower=True)
    ex.save(graph, tmp_path / "lowered.pt")
    monkeypatch.setattr(native, "available", lambda: False)
    loaded = ex.load(fresh(ResidualNet), tmp_path / "lowered.pt")
    assert "exprune.staged_" not in python_text(loaded)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), graph(x), rtol=1e-4, atol=1e-4)  # sums in another order
    ex.save(loaded, tmp_path / "again.pt")


@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.usefixtures("_operators")
def test_the_file_holds_the_models_own_tensors(lower: bool, tmp_path: Path) -> None:
    """Not those that were folded, reordered and packed; with their strides, for a channels-last model too."""
    model = fresh(ResidualNet).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload] # torch's stubs lack it
    x = torch.randn(5, 3, 8, 8)
    gm = ex.capture(model, (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    graph = ex.transform(gm, reordered_plan(gm, Calibrated(0.1), principal=True), lower=lower)
    ex.save(graph, tmp_path / "staged.pt")
    data = torch.load(tmp_path / "staged.pt", weights_only=True)
    assert (data["format"], data["version"]) == ("exprune-staged", 1)
    assert ex.Plan.from_dict(data["plan"]) == record_of(graph).plan  # type: ignore[union-attr] # it is staged
    own = {name: value for name, value in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    assert data["state_dict"].keys() == own.keys()
    for name, value in own.items():
        assert torch.equal(data["state_dict"][name], value)
        assert data["state_dict"][name].stride() == value.stride()
    with torch.no_grad():
        assert torch.equal(ex.load(fresh(ResidualNet), tmp_path / "staged.pt")(x), graph(x))


@pytest.mark.usefixtures("_operators")
@pytest.mark.parametrize("kind", [GatedNet, SquaredNet])
def test_a_staged_graph_keeps_no_second_copy_of_a_weight(kind: type[nn.Module]) -> None:
    """Once the model is gone, only what the graph itself reads is held: reordered and packed weights, not the old."""
    model, graph, _ = staged(kind, (7, 6), lower=True)
    read = {id(tensor_at(graph, name)) for name in tensor_names(graph)}
    replaced = [weakref.ref(p) for p in model.parameters() if id(p) not in read]
    assert len(replaced) >= 3
    del model
    gc.collect()  # graphs hold themselves in cycles
    assert [ref() for ref in replaced if ref() is not None] == []


def test_it_can_be_saved_again(tmp_path: Path) -> None:
    _, graph, x = staged(ResidualNet, (3, 8, 8), principal=True)
    ex.save(graph, tmp_path / "first.pt")
    ex.save(ex.load(fresh(ResidualNet), tmp_path / "first.pt"), tmp_path / "second.pt")
    with torch.no_grad():
        assert torch.equal(ex.load(fresh(ResidualNet), tmp_path / "second.pt")(x), graph(x))


def test_onto_a_captured_graph_and_an_exported_program(tmp_path: Path) -> None:
    _, graph, x = staged(SquaredNet, (7, 6))
    ex.save(graph, tmp_path / "staged.pt")
    dynamic = ({0: torch.export.Dim.AUTO},)
    program = torch.export.export(fresh(SquaredNet).eval(), (x,), dynamic_shapes=dynamic)
    captured = ex.capture(fresh(SquaredNet), (x,), dynamic_shapes=dynamic)
    for model in (program, captured):
        with torch.no_grad():
            assert torch.equal(ex.load(model, tmp_path / "staged.pt")(x[:2]), graph(x[:2]))


_FRESH = """
import sys, torch
import exprune_fx as ex
from tests.saving.models import fresh
from tests.passes.staging import ResidualNet
x, expected = torch.load(sys.argv[2], weights_only=True)
with torch.no_grad():
    assert torch.equal(ex.load(fresh(ResidualNet), sys.argv[1])(x), expected)
"""


def test_in_a_fresh_process(tmp_path: Path) -> None:
    _, graph, x = staged(ResidualNet, (3, 8, 8), principal=True)
    ex.save(graph, tmp_path / "staged.pt")
    with torch.no_grad():
        torch.save((x, graph(x)), tmp_path / "expected.pt")
    command = [sys.executable, "-c", _FRESH, str(tmp_path / "staged.pt"), str(tmp_path / "expected.pt")]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2])


class Many(nn.Module):
    """Two tensors in containers, one by keyword, a baked constant, a tied weight, and a buffer that is not saved."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 8)
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 8)
        self.head = nn.Linear(8, 12, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.full((8,), scale), persistent=False)

    def forward(self, pair: tuple[Tensor, dict[str, Tensor]], power: int, *, mask: Tensor | None = None) -> Tensor:
        ids, rest = pair
        x = self.embed(ids) * self.scale + rest["added"]
        x = self.second(self.first(x).relu()) ** power
        x = x if mask is None else x * mask.unsqueeze(-1)
        out: Tensor = self.head(x)
        return out


def many(rows: int, length: int) -> tuple[tuple[object, ...], dict[str, Tensor]]:
    ids, mask = torch.randint(0, 12, (rows, length)), torch.rand(rows, length).round()
    return ((ids, {"added": torch.randn(rows, length, 8)}), 2), {"mask": mask}


def test_many_inputs_tied_weights_and_constants(tmp_path: Path) -> None:
    """Two symbolic sizes, tied between inputs, come back symbolic; so do the file's constants on a model with others."""
    auto, dims = torch.export.Dim.AUTO, {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    args, kwargs = many(3, 5)
    shapes = {"pair": (dims, {"added": {0: auto, 1: auto}}), "power": None, "mask": dims}
    gm = ex.capture(Many(), args, kwargs, dynamic_shapes=shapes)
    graph = ex.transform(gm, plan_for(ex.normalise(gm), Calibrated(0.1), threshold=0.1), lower=False)
    ex.save(graph, tmp_path / "staged.pt")
    data = torch.load(tmp_path / "staged.pt", weights_only=True)
    assert set(data["constants"]) == {"scale"}
    assert data["state_dict"]["head.weight"] is data["state_dict"]["embed.weight"]
    assert Many().load_state_dict(data["state_dict"]).missing_keys == []
    loaded = ex.load(Many(scale=3.0), tmp_path / "staged.pt")
    for rows, length in ((3, 5), (1, 9), (4, 1)):
        args, kwargs = many(rows, length)
        with torch.no_grad():
            assert torch.equal(loaded(*args, **kwargs), graph(*args, **kwargs))


def test_limits_of_sizes_come_back(tmp_path: Path) -> None:
    x = torch.randn(4, 7, 6)
    shapes = ({0: torch.export.Dim("batch", min=3, max=9)},)
    gm = ex.capture(fresh(SquaredNet), (x,), dynamic_shapes=shapes)
    ex.save(ex.transform(gm, plan_for(gm, Calibrated(0.1)), lower=False), tmp_path / "staged.pt")
    loaded = ex.load(fresh(SquaredNet), tmp_path / "staged.pt")
    assert loaded(x[:3]).shape == (3, 7, 4)
    for refused in (x[:2], torch.randn(10, 7, 6), x[:, :6]):
        with pytest.raises(ex.CaptureError, match="size"):
            loaded(refused)


def test_opt(tmp_path: Path) -> None:
    """A model of transformers, called by keyword, with its output class."""
    transformers = pytest.importorskip("transformers")
    config = transformers.OPTConfig(
        vocab_size=40, hidden_size=32, word_embed_proj_dim=32, ffn_dim=64, num_hidden_layers=1,
        num_attention_heads=4, max_position_embeddings=64,
    )  # fmt: skip
    ids = torch.randint(0, 40, (3, 7), generator=torch.Generator().manual_seed(0))
    dims = {0: torch.export.Dim("rows"), 1: torch.export.Dim("length", max=60)}
    gm = ex.capture(
        transformers.OPTForCausalLM(config),
        (),
        {"input_ids": ids, "use_cache": False},
        dynamic_shapes={"input_ids": dims, "use_cache": None},
    )
    graph = ex.transform(gm, reordered_plan(gm, Calibrated(0.1)), lower=False)
    ex.save(graph, tmp_path / "staged.pt")
    loaded = ex.load(transformers.OPTForCausalLM(config), tmp_path / "staged.pt")
    with torch.no_grad():
        for some in (ids, ids[:1, :3]):
            expected = graph(input_ids=some, use_cache=False)
            assert torch.equal(loaded(input_ids=some, use_cache=False).logits, expected.logits)
