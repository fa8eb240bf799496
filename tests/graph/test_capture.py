from __future__ import annotations

import copy
import dataclasses
import pickle
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, fx, nn
from torch.export import Dim
from torch.nn import functional as F

from exprune_fx.errors import CaptureError
from exprune_fx.graph import capture, python_text, verify
from tests.graph.models import ResidualBlock, ResidualCnn, randomise

aten = torch.ops.aten
AUTO = Dim.AUTO


def targets(gm: fx.GraphModule) -> list[Any]:
    return [n.target for n in gm.graph.nodes if n.op == "call_function"]


def state_of(model: nn.Module) -> dict[str, tuple[int, int, Tensor]]:
    both = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    return {name: (id(t), t._version, t.detach().clone()) for name, t in both}


def assert_same_state(model: nn.Module, before: dict[str, tuple[int, int, Tensor]]) -> None:
    after = state_of(model)
    assert after.keys() == before.keys()
    for name, (identity, version, value) in before.items():
        assert after[name][:2] == (identity, version), name
        assert torch.equal(after[name][2], value), name


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


class Pair(NamedTuple):
    first: Tensor
    second: int


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)
        self.b.weight = self.a.weight
        self.register_buffer("scale", torch.full((4,), 3.0))
        self.register_buffer("hidden", torch.full((4,), 2.0), persistent=False)
        self.constant = torch.arange(4.0)

    def forward(
        self,
        items: list[Tensor],
        *,
        extra: dict[str, Tensor],
        power: int = 1,
        flag: bool | None = None,  # noqa: ARG002 - an unused input
    ) -> Any:
        x = self.a(items[0]) * self.scale + self.b(items[1]) * self.hidden
        x = x + extra["z"] * power + self.constant + torch.tensor([1.0, 2.0, 3.0, 4.0])
        return {
            "out": x,
            "n": 3,
            "none": None,
            "text": "hi",
            "size": x.shape[0],
            "pair": Pair(x + 1, 7),
            "all": [x, (x,)],
        }


def test_nested_inputs_outputs_shared_weights_and_constants() -> None:
    model = randomise(Nested())
    args = ([torch.randn(3, 4), torch.randn(3, 4)],)
    kwargs = {"extra": {"z": torch.randn(3, 4)}, "power": 2, "flag": None}
    shapes = {"items": [{0: AUTO}, {0: AUTO}], "extra": {"z": {0: AUTO}}, "power": None, "flag": None}
    gm = capture(model, args, kwargs, shapes)
    verify(gm)
    new_args = ([torch.randn(6, 4), torch.randn(6, 4)],)
    new_kwargs = {"extra": {"z": torch.randn(6, 4)}, "power": 2, "flag": None}
    expected, got = model(*new_args, **new_kwargs), gm(*new_args, **new_kwargs)
    assert list(got) == list(expected)
    assert (got["n"], got["none"], got["text"], got["size"], got["pair"].second) == (3, None, "hi", 6, 7)
    assert type(got["pair"]) is Pair
    torch.testing.assert_close(got["all"][1][0], expected["all"][1][0], rtol=0, atol=0)
    names = [n.target for n in gm.graph.nodes if n.op == "get_attr"]
    assert len(names) == len(set(names))
    assert "b.weight" not in names
    assert gm.meta["exprune_aliases"] == {"b.weight": "a.weight"}
    constants = gm.meta["exprune_constants"]
    assert {"hidden", "constant"} < constants
    assert len(constants) == 3  # and the tensor made in forward
    assert constants.isdisjoint({"scale", "a.weight", "a.bias", "b.bias"})
    assert set(gm.state_dict()) == {"a.weight", "a.bias", "b.bias", "scale"}
    assert gm.get_buffer("scale") is model.scale


def test_other_baked_in_value_is_refused() -> None:
    gm = capture(Nested(), ([torch.randn(3, 4), torch.randn(3, 4)],), {"extra": {"z": torch.randn(3, 4)}, "power": 2})
    inputs = [torch.randn(3, 4), torch.randn(3, 4)]
    with pytest.raises(CaptureError, match="'power' was captured as the constant 2"):
        gm(inputs, extra={"z": torch.randn(3, 4)}, power=3)


def test_other_structure_is_refused() -> None:
    gm = capture(Nested(), ([torch.randn(3, 4), torch.randn(3, 4)],), {"extra": {"z": torch.randn(3, 4)}, "power": 2})
    with pytest.raises(CaptureError, match="another structure"):
        gm([torch.randn(3, 4)], extra={"z": torch.randn(3, 4)}, power=2)


class Guarded(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if x.shape[0] % 2 == 0:
            return x + y
        return x - y


def test_sizes_for_which_the_graph_is_not_valid_are_refused() -> None:
    fixed = capture(nn.Linear(4, 3), (torch.randn(2, 4),))
    with pytest.raises(CaptureError, match=r"size 0 of input 'input' must be 2.*\[3, 4\]"):
        fixed(torch.randn(3, 4))
    gm = capture(Guarded(), (torch.randn(4, 2), torch.randn(4, 2)), dynamic_shapes=({0: AUTO}, {0: AUTO}))
    x = torch.randn(6, 2)
    torch.testing.assert_close(gm(x, x.clone()), 2 * x)
    with pytest.raises(CaptureError, match="must be 6"):
        gm(x, torch.randn(4, 2))
    with pytest.raises(CaptureError, match="valid only when"):
        gm(torch.randn(5, 2), torch.randn(5, 2))


def test_a_refused_shape_stays_refused_between_accepted_ones() -> None:
    gm = capture(nn.Linear(4, 3), (torch.randn(2, 4),))
    for _ in range(2):
        gm(torch.randn(2, 4))
        with pytest.raises(CaptureError):
            gm(torch.randn(3, 4))


def test_a_call_that_does_not_fit_the_signature_is_refused() -> None:
    gm = capture(nn.Linear(4, 3), (torch.randn(2, 4),))
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'input'"):
        gm()
    with pytest.raises(TypeError, match="unexpected keyword argument 'other'"):
        gm(torch.randn(2, 4), other=1)


def test_range_of_a_named_dimension_is_kept() -> None:
    gm = capture(nn.Linear(4, 3), (torch.randn(4, 4),), dynamic_shapes=({0: Dim("batch", min=3, max=6)},))
    assert gm(torch.randn(3, 4)).shape == (3, 3)
    with pytest.raises(CaptureError, match="between 3 and 6"):
        gm(torch.randn(7, 4))


def test_aliased_inputs_are_refused() -> None:
    x = torch.randn(4, 2)
    with pytest.raises(CaptureError, match=r"args\[0\] and args\[1\] are the same tensor.*\n.*clone"):
        capture(Guarded(), (x, x))


@pytest.mark.parametrize(
    "lie",
    [
        lambda x: torch.cat([x, x], 0)[::2],
        lambda x: torch.cat([x, x], 1)[:, ::2],
        lambda x: x[:1].expand(4, 6),
        lambda x: x.t().contiguous().t(),
    ],
    ids=["every other row", "every other column", "one row repeated", "transposed"],
)
def test_how_an_example_lies_in_memory_binds_no_call(lie: Callable[[Tensor], Tensor]) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    gm = capture(model, (lie(x).requires_grad_(),), dynamic_shapes=({0: Dim.DYNAMIC},))
    for given in (x, lie(x), torch.cat([x, x, x])):
        torch.testing.assert_close(gm(given), model(given))
    kept = lie(x)
    assert capture(model, (kept,))(kept).shape == (4, 2)
    assert kept.stride() == lie(x).stride()
    with pytest.raises(CaptureError, match="size 1"):
        gm(torch.randn(4, 5))


def test_a_parameter_as_input_is_refused() -> None:
    model = nn.Linear(4, 4)
    with pytest.raises(CaptureError, match=r"args\[0\] is the model's own 'weight'"):
        capture(model, (model.weight,))


@pytest.mark.parametrize("args", [torch.randn(2, 4), [torch.randn(2, 4)]])
def test_args_that_are_no_tuple_are_refused(args: Any) -> None:
    with pytest.raises(CaptureError, match="args must be a tuple"):
        capture(nn.Linear(4, 3), args)


@pytest.mark.parametrize("model", [nn.Linear, torch.relu, "model", None])
def test_what_is_no_module_is_refused(model: Any) -> None:
    with pytest.raises(CaptureError, match="cannot capture"):
        capture(model, (torch.randn(2, 4),))


def test_a_failing_forward_is_reported_with_shapes_and_cause() -> None:
    with pytest.raises(CaptureError, match=r"Linear.*float32\[2, 5\].*float64\[1\]") as caught:
        capture(nn.Linear(4, 3), (torch.randn(2, 5), torch.randn(1, dtype=torch.float64)))
    assert caught.value.__cause__ is not None


def test_flags_come_back_when_export_fails() -> None:
    model = ResidualCnn()
    with pytest.raises(CaptureError):
        capture(model, (torch.randn(2, 4),))
    assert all(m.training for m in model.modules())


class DataDependent(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if x.sum() > 0 else x - 1


def test_a_data_dependent_model_is_refused_with_the_reason() -> None:
    with pytest.raises(CaptureError, match="values of a tensor") as caught:
        capture(DataDependent(), (torch.randn(3),))
    assert caught.value.__cause__ is not None


class Counter(nn.Module):
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return x + self.count


def test_a_model_that_writes_to_its_buffer_is_refused_and_left_as_it_was() -> None:
    model = Counter()
    before = state_of(model)
    with pytest.raises(CaptureError, match="writes to 'count'"):
        capture(model, (torch.randn(3),))
    assert_same_state(model, before)


class WritesInput(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.add_(1)


def test_a_model_that_writes_to_its_input_is_refused() -> None:
    with pytest.raises(CaptureError, match="writes to"):
        capture(WritesInput(), (torch.randn(3),))


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


def test_exported_program_in_train_mode_is_refused() -> None:
    program = torch.export.export(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).train(), (torch.randn(2, 4),))
    with pytest.raises(CaptureError, match="train mode"):
        capture(program)
    with_norm = torch.export.export(nn.BatchNorm1d(4).train(), (torch.randn(2, 4),))
    with pytest.raises(CaptureError, match="writes to"):
        capture(with_norm)


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


def test_a_higher_order_operator_is_refused() -> None:
    class Conditional(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return torch.cond(x.sum() > 0, lambda y: y + 1, lambda y: y - 1, (x,))

    with pytest.raises(CaptureError, match="higher-order operator cond"):
        capture(Conditional(), (torch.randn(2),))


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


@dataclasses.dataclass
class Unregistered:
    value: Tensor


def test_an_unregistered_output_class_is_refused_with_a_hint() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Unregistered:
            return Unregistered(x + 1)

    with pytest.raises(CaptureError, match="register_dataclass"):
        capture(Model(), (torch.randn(2),))
