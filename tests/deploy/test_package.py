"""AOTInductor packages, run where this library cannot be imported: of an OPT layer here, of a CNN in test_readme.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.utils._sympy.numbers import int_oo

import exprune_fx as ex
from exprune_fx.deploy.aot_package import batch_left_open
from exprune_fx.graph import python_text
from exprune_fx.ops import native
from tests.deploy.models import staged_opt_layer
from tests.deploy.stranger import one_thread, run_stranger
from tests.passes.fused import need_operators
from tests.passes.staging import SquaredNet
from tests.saving.models import staged

FAST = {"aot_inductor.compile_wrapper_opt_level": "O0"}  # of the glue code only, which takes most of the compile time


@pytest.fixture(autouse=True)
def _operators(monkeypatch: pytest.MonkeyPatch) -> None:
    need_operators()
    monkeypatch.setattr(native, "available", lambda: True)


_RUN = """
torch.ops.load_library("model.kernels.so")
model = torch._inductor.aoti_load_package("model.pt2")
for x, expected in torch.load("expected.pt"):
    assert torch.equal(model(x), expected), (x.shape, (model(x) - expected).abs().max())
try:
    model(torch.cat([x, x], -1)[..., : x.shape[-1]])  # a slice lies otherwise in memory
except RuntimeError:
    print("refused")
"""


def check(graph: fx.GraphModule, inputs: list[Tensor], folder: Path) -> None:
    package = ex.export_package(graph, folder / "model.pt2", FAST)
    assert (package.path, package.kernels) == (folder / "model.pt2", folder / "model.kernels.so")
    assert {path.name for path in folder.iterdir()} == {"model.pt2", "model.kernels.so"}
    here = torch._inductor.aoti_load_package(str(package.path))
    with one_thread():
        results = [here(x) for x in inputs]
    torch.save(list(zip(inputs, results, strict=True)), folder / "expected.pt")
    assert run_stranger(_RUN, folder, AOTI_RUNTIME_CHECK_INPUTS="1") == "refused\n"
    for x, result in zip(inputs, results, strict=True):
        with torch.no_grad():
            # Inductor's own kernels round the dense layers otherwise.
            torch.testing.assert_close(result, graph(x), rtol=1e-4, atol=1e-4)


def test_an_opt_layer(tmp_path: Path) -> None:
    """With symbolic rows and length, its feed-forward block one operator."""
    graph, hidden = staged_opt_layer(lower=True)
    assert "exprune.staged_ffn" in python_text(graph)
    check(graph, [hidden[:1, :1], hidden, hidden[:2, :5].contiguous()], tmp_path)


@pytest.mark.parametrize("by_name", [False, True], ids=["as torch 2.13 asks", "as torch 2.11 asks"])
def test_nothing_is_assumed_of_a_batch(by_name: bool) -> None:
    """Else torch asks whether it has 16 examples, and the answer for the example becomes a bound."""

    image, weight = torch.ones(4, 3, 8, 8), torch.ones(8, 3, 3, 3)
    names = ("stride", "padding", "dilation", "transposed", "output_padding", "groups")
    settings = dict(zip(names, ([1, 1], [1, 1], [1, 1], False, [0, 0], 1), strict=True))
    only_the_batch: Any = StatelessSymbolicContext([DimDynamic.DYNAMIC, *[DimDynamic.STATIC] * 3])

    def most_examples() -> object:
        env = ShapeEnv()
        with FakeTensorMode(shape_env=env, static_shapes=False) as mode:
            x = mode.from_tensor(image, source=ConstantSource("image"), symbolic_context=only_the_batch)
            w = mode.from_tensor(weight, static_shapes=True)
            select = torch._C._select_conv_backend
            _ = select(input=x, weight=w, bias=None, **settings) if by_name else select(x, w, bias=None, **settings)
        batch: Any = x.shape[0]
        return env.bound_sympy(batch.node.expr).upper

    assert most_examples() == 15
    with batch_left_open():
        assert most_examples() == int_oo


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left behind; a graph that calls no kernel needs none."""
    _, graph, _ = staged(SquaredNet, (7, 6), lower=True)
    with pytest.raises(ex.ExportError, match=r"end in \.pt2"):
        ex.export_package(graph, tmp_path / "model.so")

    def fail(*_args: object, **_kwargs: object) -> None:
        raise RuntimeError("C++ compile error")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", fail)
    with pytest.raises(ex.ExportError, match=r"could not compile(.|\n)*C\+\+ compile error"):
        ex.export_package(graph, tmp_path / "model.pt2")
    monkeypatch.setattr(native, "available", lambda: False)
    with pytest.raises(ex.KernelError, match=r"cannot be had(.|\n)*lower=False"):
        ex.export_package(graph, tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", lambda *_, **__: None)
    assert ex.export_package(staged(SquaredNet, (7, 6))[1], tmp_path / "model.pt2").kernels is None
