"""Models that people have: transformers' decoders with their caches, graph networks, the zoo."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from exprune_fx import zoo
from exprune_fx.backend import exprune
from exprune_fx.calibration import calibrate
from exprune_fx.graph import capture
from exprune_fx.guards import Bound, Calibrated
from exprune_fx.measurement import measure
from exprune_fx.pipeline import transform
from exprune_fx.plan import Plan
from tests.backend.models import SmallCnn, captured, compiled_by, images, randomised
from tests.backend.test_ways_in import Inner

# Folder of trained weights that do not ship with the library.
CHECKPOINT = Path(os.environ.get("EXPRUNE_TEST_CHECKPOINTS", "")) / "opt_shakespeare_chars.pt"


def _opt(**sizes: int) -> Any:
    transformers = pytest.importorskip("transformers")
    given = {"vocab_size": 65, "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    given |= {"max_position_embeddings": 128, "word_embed_proj_dim": 32, "bos_token_id": 0, "eos_token_id": 0}
    torch.manual_seed(0)
    model = transformers.OPTForCausalLM(transformers.OPTConfig(**given, pad_token_id=0, **sizes)).eval()
    for name, value in model.state_dict().items():
        if name.endswith("fc1.bias"):
            value.sub_(0.3)  # most units negative, as in a trained model
        elif value.dim() == 2:
            value.mul_(8)
    return model


@pytest.mark.parametrize("freeze", [False, True])
@torch.no_grad()
def test_opt_generates_the_same_64_tokens(freeze: bool) -> None:
    model, inner = _opt(), Inner()
    prompt = torch.tensor([[3, 14, 15, 9, 26, 5]])
    asked = {"max_new_tokens": 64, "min_new_tokens": 64, "do_sample": False}
    expected = model.generate(prompt, **asked)
    model.compile(backend="exprune", options={"guard": Bound(), "inner": inner, "freeze": freeze})
    found = model.generate(prompt, **asked)
    assert found.shape == (1, 70)
    assert len(found.unique()) > 3
    assert torch.equal(found, expected)
    assert len(inner.graphs) <= 3  # prefill, one token after a cache of one length, one token after any
    for graph in inner.graphs:
        operator = "staged_ffn" if freeze else "staged_linear_relu"  # joined where its weight can be packed
        assert sum(str(node.target) == f"exprune.{operator}.default" for node in graph.graph.nodes) == 2


@functools.cache
def _plan_of_opt() -> tuple[Plan, Tensor, Tensor]:
    """A plan of the whole model, tokens of 8 texts, and the logits that its own graph gives for them."""
    model = _opt()
    ids = torch.randint(1, 65, (8, 24), generator=torch.Generator().manual_seed(1))
    sizes = {
        "input_ids": {0: torch.export.Dim("batch", max=16), 1: torch.export.Dim("length", max=100)},
        "use_cache": None,
    }
    gm = capture(model, (), {"input_ids": ids, "use_cache": False}, dynamic_shapes=sizes)
    plan = calibrate(gm, [((), {"input_ids": ids, "use_cache": False})], guard=Calibrated(0.02), stages=(0.5,))
    return plan, ids, transform(gm, plan)(input_ids=ids, use_cache=False).logits


@pytest.mark.parametrize("freeze", [False, True])
@torch.no_grad()
def test_a_plan_of_the_whole_opt_serves_prefill_and_cached_decoding(freeze: bool) -> None:
    model, inner = _opt(), Inner()
    plan, ids, expected = _plan_of_opt()
    assert len(plan.staged) == 2
    model.compile(backend=exprune, options={"plan": plan, "inner": inner, "freeze": freeze})
    cache, found = None, []
    for start, stop in ((0, 20), (20, 21), (21, 22), (22, 23), (23, 24)):
        out = model(input_ids=ids[:, start:stop], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        found.append(out.logits)
    torch.testing.assert_close(torch.cat(found, 1), expected, rtol=1e-3, atol=1e-3)  # float32, attention in pieces
    assert all(inner.staged)
    assert len(inner.graphs) <= 3


@torch.no_grad()
def test_a_relu_llama_with_its_rotary_cache() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=65, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, hidden_act="relu", bos_token_id=0, eos_token_id=0,
        pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    prompt = torch.tensor([[3, 14, 15, 9, 26, 5]])
    asked = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
    expected = model.generate(prompt, **asked)
    inner = Inner()
    model.compile(backend=exprune, options={"guard": Bound(), "inner": inner, "freeze": True})
    assert torch.equal(model.generate(prompt, **asked), expected)
    for graph in inner.graphs:
        assert sum(str(node.target) == "exprune.staged_gated_ffn.default" for node in graph.graph.nodes) == 2


@pytest.mark.skipif(not CHECKPOINT.exists(), reason=f"needs {CHECKPOINT.name} in EXPRUNE_TEST_CHECKPOINTS")
@torch.no_grad()
def test_a_trained_opt_with_a_calibrated_plan_says_nearly_the_same(record_property: Any) -> None:
    transformers = pytest.importorskip("transformers")
    held = torch.load(CHECKPOINT, weights_only=True)
    model = transformers.OPTForCausalLM(transformers.OPTConfig(**held["config"])).eval()
    model.load_state_dict({name: value.float() for name, value in held["state_dict"].items()}, strict=False)
    torch.manual_seed(0)
    # What the model writes itself is in distribution: half to calibrate on, half to judge.
    text = model.generate(torch.randint(1, 65, (16, 1)), max_new_tokens=95, min_new_tokens=95, do_sample=True)
    sizes = {
        "input_ids": {0: torch.export.Dim("batch", max=64), 1: torch.export.Dim("length", max=200)},
        "use_cache": None,
    }
    gm = capture(model, (), {"input_ids": text[:8], "use_cache": False}, dynamic_shapes=sizes)
    plan = calibrate(gm, [((), {"input_ids": text[:8], "use_cache": False})], guard=Calibrated(0.02))
    judged = [((), {"input_ids": text[8:], "use_cache": False})]
    stopped = [1 - site.alive_fraction[-1] for site in measure(transform(gm, plan), judged).sites]
    asked = {"max_new_tokens": 64, "min_new_tokens": 64, "do_sample": False}
    expected, dense = model.generate(text[8:, :24], **asked), model(text[8:]).logits.argmax(-1)
    model.compile(backend=exprune, options={"plan": plan, "inner": "eager", "freeze": True})
    found = model.generate(text[8:, :24], **asked)
    record_property("stopped_fraction", stopped)
    record_property("equal_tokens_generated", (found == expected)[:, 24:].float().mean().item())
    share = (model(text[8:]).logits.argmax(-1) == dense).float().mean().item()
    record_property("equal_tokens_given_the_same_text", share)
    assert min(stopped) > 0.5
    assert share > 0.9


@torch.no_grad()
def test_a_graph_network() -> None:
    layers = pytest.importorskip("torch_geometric.nn")

    class Gcn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = layers.GCNConv(8, 16)
            self.lin = nn.Linear(16, 24)
            self.last = nn.Linear(24, 3)

        def forward(self, x: Tensor, edges: Tensor) -> Tensor:
            x = self.first(x, edges).relu()
            out: Tensor = self.last(self.lin(x).relu())
            return out

    torch.manual_seed(0)
    model, inner = Gcn().eval(), Inner()
    compiled = compiled_by(model, {"guard": Bound(), "inner": inner})
    for nodes in (6, 9):
        x, edges = torch.randn(nodes, 8), torch.randint(nodes, (2, 20))
        torch.testing.assert_close(compiled(x, edges), model(x, edges), rtol=1e-4, atol=1e-5)
    assert any(inner.staged)


@pytest.mark.parametrize("freeze", [False, True], ids=["small", "shipped, frozen"])
@torch.no_grad()
def test_images_through_inductor(freeze: bool) -> None:
    """A shipped network where parameters are frozen; a small one where they are read at each call: compiling is slow."""
    if freeze:
        model, x, batches = zoo.load("resnet_fashion"), zoo.load_sample().test_images[:4], zoo.calibration_batches()[:1]
    else:
        model, x, batches = randomised(SmallCnn()), images(4), [(images(32, seed=2),)]
    gm = captured(model, x)
    plan = calibrate(gm, batches, guard=Calibrated(0.01), stages=(0.25,))
    assert plan.staged
    compiled = compiled_by(model, {"plan": plan, "freeze": freeze})
    # Inductor rounds the dense layers otherwise, which may turn a neuron on its threshold.
    torch.testing.assert_close(compiled(x), transform(gm, plan)(x), rtol=1e-2, atol=1e-2)
