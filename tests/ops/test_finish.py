"""finish_* and gated_linear: dense where nothing stops, exactly 0 where it does, and whole flows through torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import exprune_fx.ops
from exprune_fx.errors import GuardError
from exprune_fx.ops.dominance import tables_of
from tests.ops.truths import CONVS, Conv, assert_close, double_conv_terms, elements_of, rounding

ops = torch.ops.exprune
DENSE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "relu_squared": lambda z: F.relu(z) ** 2,
}
each_activation = pytest.mark.parametrize("activation", DENSE)
each_conv = pytest.mark.parametrize("conv", CONVS.values(), ids=CONVS.keys())


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@each_activation
@pytest.mark.parametrize("known", ["bias", "residual", "both", "nothing"])
@pytest.mark.parametrize("leading", [(), (4,), (2, 3), (2, 1, 3, 1), (0,), (2, 0)], ids=str)
def test_a_linear_site_that_never_stops_is_dense(leading: tuple[int, ...], known: str, activation: str) -> None:
    x, weight = _random(*leading, 7) * 3, _random(5, 7, seed=1)
    bias = _random(5, seed=2) if known in ("bias", "both") else None
    residual = _random(*leading, 5, seed=3) if known in ("residual", "both") else None
    never = torch.zeros(*leading, 5, dtype=torch.bool)
    dense = DENSE[activation](F.linear(x, weight, bias) + (0 if residual is None else residual))
    head = ops.partial_linear(x, weight, 0, 3)
    for partial, start in ((head, 3), (ops.partial_linear(x, weight, 3, 4, head), 4), (None, 0)):
        found = ops.finish_linear_relu(x, weight, bias, residual, partial, never, start, activation)
        torch.testing.assert_close(found, dense, rtol=1e-12, atol=1e-12)


@each_conv
@pytest.mark.parametrize("known", ["bias", "residual", "both", "nothing"])
def test_a_convolution_that_never_stops_is_dense(conv: Conv, known: str) -> None:
    x, weight = conv.operands(3, torch.float64)
    z = double_conv_terms(x, weight, conv).sum(-1)
    bias = _random(conv.out, seed=2) if known in ("bias", "both") else None
    residual = _random(*z.shape, seed=3) if known in ("residual", "both") else None
    if bias is not None:
        z = z + bias.reshape(-1, *[1] * len(conv.space))
    z = z if residual is None else z + residual
    for activation, dense in DENSE.items():
        for start in (0, 1, conv.channels - 1):
            head = ops.partial_conv(x, weight, *conv.geometry, conv.groups, 0, start) if start else None
            found = ops.finish_conv_relu(
                x, weight, bias, residual, head, z > 1e9, *conv.geometry, conv.groups, start, activation
            )
            torch.testing.assert_close(found, dense(z), rtol=1e-12, atol=1e-11)


@each_activation
def test_what_stopped_is_exactly_zero_and_nothing_else_changes(activation: str) -> None:
    x, weight, bias = _random(6, 7), _random(5, 7, seed=1), _random(5, seed=2) + 2
    stopped = torch.rand(6, 5, generator=torch.Generator().manual_seed(3)) < 0.5
    found = ops.finish_linear_relu(x, weight, bias, None, None, stopped, 0, activation)
    dense = DENSE[activation](F.linear(x, weight, bias))
    assert (dense[stopped] > 0).any()
    assert torch.equal(found, torch.where(stopped, 0.0, dense))


def test_a_stopped_neuron_is_zero_even_where_the_sum_is_no_number() -> None:
    x, weight = torch.tensor([[float("inf"), 1.0]]), torch.tensor([[-1.0, 1.0], [1.0, -1.0], [0.0, 1.0]])
    stopped = torch.tensor([[True, True, False]])
    found = ops.finish_linear_relu(x, weight, None, None, None, stopped, 0, "relu")
    assert found[0, :2].tolist() == [0.0, 0.0]
    assert found[0, 2].isnan()


def test_an_unknown_activation_is_refused() -> None:
    x = torch.zeros(1, 2)
    with pytest.raises(ValueError, match="unknown activation 'gelu'"):
        ops.finish_linear_relu(x, x, None, None, None, torch.zeros(1, 1, dtype=torch.bool), 0, "gelu")
    assert issubclass(GuardError, ValueError)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_once_at_the_end(dtype: torch.dtype) -> None:
    conv = CONVS["conv2d"]
    x, weight = conv.operands(9, dtype)
    bias, residual = _random(4).to(dtype), _random(2, 4, 5, 4, seed=4).to(dtype)
    terms = double_conv_terms(x, weight, conv)
    z = terms.sum(-1) + bias.double().reshape(-1, 1, 1) + residual.double()
    head = ops.partial_conv(x, weight, *conv.geometry, 1, 0, 2)
    never = torch.zeros(z.shape, dtype=torch.bool)
    found = ops.finish_conv_relu(x, weight, bias, residual, head, never, *conv.geometry, 1, 2, "relu")
    assert found.dtype is dtype
    tolerance = float(z.max()) * torch.finfo(dtype).eps / 2 + 2 * rounding(terms, elements_of(weight))
    assert_close(found, z.relu(), tolerance)
    gate = found.flatten(2).mT[..., :2]
    assert ops.gated_linear(gate, x.flatten(2).mT, weight[:2, :, 0, 0], None).dtype is dtype


@pytest.mark.parametrize("leading", [(), (3,), (2, 4), (0,)], ids=str)
@pytest.mark.parametrize("with_bias", [True, False])
def test_gated_linear_is_the_product_and_zero_where_the_gate_is(leading: tuple[int, ...], with_bias: bool) -> None:
    gate, x, weight = _random(*leading, 5).relu(), _random(*leading, 7, seed=1), _random(5, 7, seed=2)
    bias = _random(5, seed=3) if with_bias else None
    found = ops.gated_linear(gate, x, weight, bias)
    torch.testing.assert_close(found, gate * F.linear(x, weight, bias), rtol=0, atol=0)
    poisoned = weight.clone()
    poisoned[2] = float("nan")
    gate[..., 2] = 0
    assert (ops.gated_linear(gate, x, poisoned, bias)[..., 2] == 0).all()


# --- whole flows ------------------------------------------------------------------------------------------------------


class StagedLinear(nn.Module):
    """Two stages of StatsTest, then Calibrated, on one linear layer with a residual."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(6, 12, generator=generator) / 4)
        self.bias = nn.Parameter(torch.randn(6, generator=generator) / 4)

    def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        head = ops.partial_linear(x, self.weight, 0, 4)
        squares = ops.squares_linear(x, self.weight, 0, 4, 2)
        c = ops.constant_term(self.bias, residual, 0)
        first = ops.guard_stats_test(head, squares, c, 2, 6, -0.5)
        head = ops.partial_linear(x, self.weight, 4, 8, head)
        stopped = first | ops.guard_calibrated(head, c, torch.full((6,), -0.2))
        gate = ops.finish_linear_relu(x, self.weight, self.bias, residual, head, stopped, 8, "relu")
        return ops.gated_linear(gate, x, self.weight, None), stopped


class StagedConv(nn.Module):
    """One Bound and one FinitePopulation test on one convolution of two groups."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 6, 3, 3, generator=torch.Generator().manual_seed(1)) / 6)

    def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        geometry = ([2, 1], [1, 1], [1, 2], 2)
        head = ops.partial_conv(x, self.weight, *geometry, 0, 3)
        squares = ops.squares_conv(x, self.weight, *geometry, 0, 3)
        rest, whole = (self.weight[:, i:].flatten(1).norm(dim=1).reshape(4, 1, 1) for i in (3, 0))
        rest_x, whole_x = (ops.input_norm_conv(x, [3, 3], *geometry, 2, i, 6) for i in (3, 0))
        stopped = ops.guard_bound(head, residual, rest, rest_x, whole, whole_x, 54)
        stopped = stopped | ops.guard_finite_population(head, squares, residual, 3, 6, 1.0)
        return ops.finish_conv_relu(x, self.weight, None, residual, head, stopped, *geometry, 3, "relu"), stopped


Flow = tuple[nn.Module, Callable[[int], tuple[Tensor, Tensor]]]


def _linear_inputs(batch: int) -> tuple[Tensor, Tensor]:
    return _random(batch, 3, 12, seed=7).float(), _random(batch, 3, 6, seed=8).float()


def _conv_inputs(batch: int) -> tuple[Tensor, Tensor]:
    return _random(batch, 12, 7, 8, seed=7).float(), _random(batch, 4, 4, 6, seed=8).float()


@pytest.fixture(params=["linear", "conv"])
def flow(request: pytest.FixtureRequest) -> Flow:
    return (StagedLinear(), _linear_inputs) if request.param == "linear" else (StagedConv(), _conv_inputs)


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning")  # torch's own, when it copies programs
def test_flows_export_with_a_symbolic_batch(flow: Flow) -> None:
    model, inputs = flow
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, inputs(3), dynamic_shapes=({0: batch}, {0: batch}))
    targets = {str(node.target) for node in program.graph.nodes}
    assert any(target.startswith("exprune.finish_") for target in targets), "the operators stay readable"
    lowered = program.run_decompositions()
    assert not any(str(node.target).startswith("exprune") for node in lowered.graph.nodes)
    for exported in (program.module(), lowered.module()):
        for size in (1, 5):
            torch.testing.assert_close(exported(*inputs(size)), model(*inputs(size)))


def test_flows_compile(flow: Flow) -> None:
    model, inputs = flow
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for size in (3, 5):
        torch.testing.assert_close(compiled(*inputs(size)), model(*inputs(size)))
    torch._dynamo.reset()


def test_gradients_flow_where_alive_and_only_there() -> None:
    x, weight, bias = (value.requires_grad_() for value in (_random(6, 7), _random(5, 7, seed=1), _random(5, seed=2)))
    stopped = torch.rand(6, 5, generator=torch.Generator().manual_seed(3)) < 0.5

    def staged(*operands: Tensor) -> Tensor:
        x, weight, bias = operands
        head = ops.partial_linear(x, weight, 0, 3)
        found: Tensor = ops.finish_linear_relu(x, weight, bias, None, head, stopped, 3, "relu_squared")
        return found

    def masked(*operands: Tensor) -> Tensor:
        return F.linear(*operands).relu().square() * ~stopped

    weights = _random(6, 5, seed=4)
    found, expected = (
        torch.autograd.grad((form(x, weight, bias) * weights).sum(), (x, weight, bias)) for form in (staged, masked)
    )
    for mine, truth in zip(found, expected, strict=True):
        assert truth.abs().max() > 0
        torch.testing.assert_close(mine, truth, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(staged, (x, weight, bias))


@pytest.fixture
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_threads")
def test_an_input_stops_alike_alone_and_in_a_batch_and_on_any_number_of_threads(flow: Flow) -> None:
    """Values to rounding; decisions exactly, as these inputs are nowhere within rounding of a threshold."""
    model, inputs = flow
    x, residual = inputs(7)
    torch.set_num_threads(1)
    y, stopped = model(x, residual)
    assert 0.05 < stopped.double().mean() < 0.95
    alone = [model(x[i : i + 1], residual[i : i + 1]) for i in range(7)]
    torch.set_num_threads(2)
    for other, decided in ((torch.cat([a for a, _ in alone]), torch.cat([b for _, b in alone])), model(x, residual)):
        assert torch.equal(decided, stopped)
        torch.testing.assert_close(other, y)


# --- every operator by itself -----------------------------------------------------------------------------------------


def _samples() -> dict[str, tuple[Any, ...]]:
    x, weight, c = torch.randn(3, 8), torch.randn(4, 8), torch.randn(3, 4)
    image, kernel, geometry = torch.randn(2, 6, 5, 5), torch.randn(4, 3, 3, 3), ([1, 1], [1, 1], [1, 1])
    pixels = torch.randn(2, 4, 5, 5)
    one = torch.rand(4)
    made = tables_of(weight, one, [8], None, None)
    tables = (made.codes, made.numbers, made.center, made.basis, made.slack)
    return {
        "partial_linear": (x, weight, 2, 5, c),
        "squares_linear": (x, weight, 2, 6, 2, None),
        "partial_conv": (image, kernel, *geometry, 2, 0, 2, pixels),
        "squares_conv": (image, kernel, *geometry, 2, 0, 2, None),
        "principal_linear": (x, torch.randn(2, 8), torch.randn(4, 2)),
        "principal_conv": (image, torch.randn(2, 6), torch.randn(4, 2, 3, 3), *geometry),
        "coded_conv": (image[:, :4], torch.randint(-127, 128, (4, 4, 3, 3), dtype=torch.int8), one, *geometry),
        "constant_term": (one, pixels, 2),
        "guard_threshold": (c, one, 2, 8, 0.1),
        "guard_stats_test": (c, c * c, one, 2, 8, -0.5),
        "guard_finite_population": (c, c * c, None, 2, 8, 0.5),
        "guard_calibrated": (c, one, one),
        "guard_pooled": (
            pixels,
            one.reshape(4, 1, 1),
            *one.reshape(1, 4, 1, 1).expand(2, -1, 1, 1),
            [2, 2],
            pixels < 0,
        ),
        "guard_bound": (c, one, one, torch.rand(3, 1), one, torch.rand(3, 1), 8),
        "input_norm_linear": (x, 2, 8),
        "input_norm_conv": (image, [3, 3], *geometry, 2, 2, 1, 3),
        "finish_linear_relu": (x, weight, one, c, c, c < 0, 3, "relu"),
        "finish_conv_relu": (image, kernel, one, pixels, pixels, pixels < 0, *geometry, 2, 1, "relu6"),
        "gated_linear": (c.relu(), x, weight, one),
        "guard_dominance": (x, weight, one, *tables, [8], [1.0], 1),
        "finish_argmax": (x, weight, one, c < 0),
        "finish_topk": (x, weight, one, c < -9, 2),
    }


def test_every_operator_has_a_sample() -> None:
    assert set(exprune_fx.ops.OPERATORS) == set(_samples())


@pytest.mark.parametrize("name", exprune_fx.ops.OPERATORS)
def test_opcheck(name: str) -> None:
    """Schema (no hidden mutation or aliasing), fake tensors, and dispatch under AOT with symbolic shapes."""
    torch.manual_seed(0)
    operator = getattr(ops, name).default
    sample = _samples()[name]
    if not name.startswith("guard"):
        sample = tuple(
            value.clone().requires_grad_() if isinstance(value, Tensor) and value.is_floating_point() else value
            for value in sample
        )
    torch.library.opcheck(operator, sample, test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"))
