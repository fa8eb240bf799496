from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.export import Dim
from torch.nn import functional as F

from exprune_fx.errors import CaptureError
from exprune_fx.graph import capture, python_text, verify
from tests.graph.models import Nested, ResidualBlock, ResidualCnn, assert_same_state, randomise, state_of

aten = torch.ops.aten
AUTO = Dim.AUTO


def targets(gm: fx.GraphModule) -> list[Any]:
    return [n.target for n in gm.graph.nodes if n.op == "call_function"]


def test_residual_cnn_in_train_mode_is_captured_in_eval_and_comes_back_untouched() -> None:
    model = randomise(ResidualCnn())
    model.train()
    model.block.norm1.eval()
    flags = {name: m.training for name, m in model.named_modules()}
    assert set(flags.values()) == {True, False}
    before = state_of(model)
    gm = capture(model, (torch.randn(2, 3, 8, 8),), dynamic_shapes=({0: AUTO},))
    verify(gm)
    assert {name: m.training for name, m in model.named_modules()} == flags
    assert_same_state(model, before)
    model.eval()
    for batch in (1, 2, 5):  # the batch size is symbolic, and one is not special
        x = torch.randn(batch, 3, 8, 8)
        torch.testing.assert_close(gm(x), model(x), rtol=0, atol=0)
    assert not any(m.training for m in gm.modules())


def test_dialect_of_the_residual_cnn() -> None:
    model = ResidualCnn()
    gm = capture(model, (torch.randn(2, 3, 8, 8),))
    seen = targets(gm)
    assert seen.count(aten.batch_norm.default) == 2
    assert seen.count(aten.relu.default) == 2
    assert aten.relu_.default not in seen
    assert aten.add_.Tensor not in seen
    paths = {str(n.target): n.meta["module_path"] for n in gm.graph.nodes if n.op != "output"}
    assert paths["block.conv1.weight"] == "block.conv1"
    conv_paths = [n.meta["module_path"] for n in gm.graph.nodes if n.target is aten.conv2d.default]
    assert conv_paths == ["stem", "block.conv1", "block.conv2"]
    # One module, called twice: both calls have its path.
    assert [n.meta["module_path"] for n in gm.graph.nodes if n.target is aten.relu.default] == ["block.relu"] * 2
    assert gm.get_parameter("block.conv1.weight") is model.block.conv1.weight
    assert "block.norm1.num_batches_tracked" not in dict(gm.named_buffers())


class Caching(nn.Module):
    """Keeps what its forward computed in plain attributes, as detection heads do with their anchors."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.shape, self.offsets = nn.Linear(4, 5), torch.Size(), torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape != self.shape:
            self.shape, self.offsets, self.scale = x.shape, torch.arange(5.0), torch.ones(1)
        y: Tensor = self.net(x) + self.offsets * self.scale
        return y


@pytest.mark.filterwarnings("ignore:The tensor attribute:UserWarning")  # torch.export says what it found
def test_what_a_forward_keeps_is_not_left_fake() -> None:
    model = Caching().eval()
    gm = capture(model, (torch.randn(2, 4),))
    assert model.shape == torch.Size()
    assert "scale" not in vars(model)
    x = torch.randn(2, 4)
    torch.testing.assert_close(gm(x), model(x), rtol=0, atol=0)  # the same operations on the same numbers


def test_train_is_not_called_on_the_model() -> None:
    class Counts(nn.Linear):
        def train(self, mode: bool = True) -> Counts:
            raise AssertionError(f"capture must not run the model's own train({mode})")

    model = Counts(2, 2)
    capture(model, (torch.randn(1, 2),))
    assert model.training


def test_exported_program() -> None:
    model = randomise(ResidualCnn()).eval()
    x = torch.randn(2, 3, 8, 8)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: AUTO},))
    gm = capture(program)
    verify(gm)
    y = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(gm(y), model(y), rtol=0, atol=0)
    assert python_text(gm) == python_text(capture(model, (x,), dynamic_shapes=({0: AUTO},)))
    assert python_text(capture(program, (x,))) == python_text(gm)
    with pytest.raises(CaptureError, match="size 2 of input 'x' must be 8"):
        capture(program, (torch.randn(2, 3, 9, 9),))
    with pytest.raises(CaptureError, match="dynamic shapes already"):
        capture(program, (x,), dynamic_shapes=({0: AUTO},))


def test_symbolic_trace_result_and_a_captured_graph_can_be_captured() -> None:
    model = randomise(ResidualBlock(4)).eval()
    x = torch.randn(2, 4, 5, 5)
    traced = capture(fx.symbolic_trace(model), (x,), dynamic_shapes=({0: AUTO},))
    again = capture(traced, (x,), dynamic_shapes=({0: AUTO},))
    for gm in (traced, again):
        verify(gm)
        y = torch.randn(3, 4, 5, 5)
        torch.testing.assert_close(gm(y), model(y), rtol=0, atol=0)
    assert [n.meta["module_path"] for n in traced.graph.nodes if n.target is aten.conv2d.default] == ["conv1", "conv2"]


def test_gradient_regions_and_autocast_are_inlined() -> None:
    class Regions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = self.linear(x) + 1
            with torch.autocast("cpu", enabled=False):
                return x * 2

    model = Regions()
    gm = capture(model, (torch.randn(2, 4),))
    verify(gm)
    x = torch.randn(2, 4)
    torch.testing.assert_close(gm(x), model(x), rtol=0, atol=0)


def test_deep_copy_has_its_own_tensors_and_keeps_the_check() -> None:
    model = randomise(Nested())
    gm = capture(model, ([torch.randn(3, 4), torch.randn(3, 4)],), {"extra": {"z": torch.randn(3, 4)}})
    clone = copy.deepcopy(gm)
    verify(clone)
    assert python_text(clone) == python_text(gm)
    assert clone.get_parameter("a.weight") is not gm.get_parameter("a.weight")
    assert set(clone.state_dict()) == set(gm.state_dict())
    with pytest.raises(CaptureError):
        clone([torch.randn(2, 4), torch.randn(2, 4)], extra={"z": torch.randn(2, 4)})


def test_pickle_round_trip_computes_the_same() -> None:
    model = randomise(ResidualCnn()).eval()
    gm = capture(model, (torch.randn(2, 3, 8, 8),))
    with warnings.catch_warnings():  # torch's own, on unpickling a tree spec
        warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
        again = pickle.loads(pickle.dumps(gm))
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        pytest.param(
            nn.LSTM(4, 5, 2),
            (7, 2, 4),
            marks=pytest.mark.skipif(
                torch.__version__.startswith("2.11."), reason="torch 2.11 records other shapes than its lstm gives"
            ),
        ),
        (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (2, 5, 8)),
        (nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), (2, 3)),
        (nn.InstanceNorm2d(3, track_running_stats=True), (2, 3, 4, 4)),
        (nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, track_running_stats=False)), (2, 2, 5, 5)),
        (nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 2, 5, 5)),
        (nn.Identity(), (2,)),
    ],
    ids=lambda p: type(p).__name__ if isinstance(p, nn.Module) else None,
)
def test_modules_of_torch(model: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    gm = capture(model, (x,))
    verify(gm)
    # The encoder layer takes a fused path in eager eval: another order of the same float32 sums.
    torch.testing.assert_close(gm(x), model.eval()(x), rtol=1e-5, atol=1e-6)


def test_compiles() -> None:
    model = randomise(ResidualCnn()).eval()
    gm = capture(model, (torch.randn(2, 3, 8, 8),), dynamic_shapes=({0: AUTO},))
    x = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(torch.compile(gm, backend="eager")(x), model(x), rtol=0, atol=0)


def test_transformers_opt_with_model_output() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.OPTConfig(
        vocab_size=50, hidden_size=16, ffn_dim=32, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=16,
        max_position_embeddings=32, use_cache=False,
    )  # fmt: skip
    model = transformers.OPTForCausalLM(config)
    ids = torch.randint(0, 50, (2, 7))
    gm = capture(model, (), {"input_ids": ids}, {"input_ids": {0: AUTO, 1: AUTO}})
    verify(gm)
    model.eval()
    other = torch.randint(0, 50, (3, 11))
    expected, got = model(input_ids=other), gm(input_ids=other)
    assert type(got) is type(expected)
    # Not bit for bit: attention takes its mask in another form when traced.
    torch.testing.assert_close(got.logits, expected.logits, rtol=1e-5, atol=1e-6)
    assert gm.meta["exprune_aliases"] == {"lm_head.weight": "model.decoder.embed_tokens.weight"}
    assert targets(gm).count(aten.scaled_dot_product_attention.default) == 2
    assert "model.decoder.layers.1.fc1" in {n.meta["module_path"] for n in gm.graph.nodes if n.op == "call_function"}


def test_transformers_llama() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, use_cache=False, max_position_embeddings=32,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    ids = torch.randint(0, 50, (2, 7))
    gm = capture(model, (ids,), None, ({0: AUTO, 1: AUTO},))
    verify(gm)
    other = torch.randint(0, 50, (3, 5))
    torch.testing.assert_close(gm(other).logits, model.eval()(other).logits, rtol=1e-5, atol=1e-6)
    assert any(name.endswith("inv_freq") for name in gm.meta["exprune_constants"])


def test_graph_convolution() -> None:
    geometric = pytest.importorskip("torch_geometric.nn")

    class Gcn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = geometric.GCNConv(6, 8)
            self.conv2 = geometric.GCNConv(8, 3)

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            result: Tensor = self.conv2(F.relu(self.conv1(x, edge_index)), edge_index)
            return result

    model = Gcn().eval()
    x, edges = torch.randn(5, 6), torch.randint(0, 5, (2, 9))
    gm = capture(model, (x, edges), dynamic_shapes=({0: Dim("nodes", min=2, max=1000)}, {1: Dim("edges", max=1000)}))
    verify(gm)
    x, edges = torch.randn(8, 6), torch.randint(0, 8, (2, 21))
    # Scatter adds in another order than eager may.
    torch.testing.assert_close(gm(x, edges), model(x, edges), rtol=1e-5, atol=1e-6)
