"""The user's own module: shrunk in place, attributes and all, trainable, and replayed from its plan."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from exprune_fx.graph import capture
from exprune_fx.static import ChannelPlan, Magnitude, Random, shrink
from tests.static.masked import masked
from tests.static.nets import X, net
from tests.static.test_masked import READS_ZERO, TOLERANCE
from tests.symmetry.architectures.registry import build
from tests.symmetry.test_architectures import error, outputs

# One of each kind of coupling; all of them, as graphs, are in test_masked.
IN_PLACE = ["resnext", "densenet", "shufflenet_v2", "unet", "tied_lm", "opt", "sage"]
FIXED = {
    "squeeze_excite": {"conv1.weight[0]"},  # gate.view(x.shape[0], 6, 1, 1)
    # reshape(batch, tokens, dim), dim the stream's: head dims and stream shrink together, numbers of heads do not.
    "vit": {"blocks.0.attn.qkv.weight[0][0:15]:[3]x5", "blocks.1.attn.qkv.weight[0][0:15]:[3]x5"},
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_the_module_is_the_masked_dense_one_and_its_plan_replays(name: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers and torch_geometric, while they are imported and exported
        architecture = build(name)
        model = architecture.model
        dense = copy.deepcopy(model)
        small = shrink(
            model,
            architecture.args,
            criterion=Random(3),
            fraction_removed=0.5,
            ranking="layer",
            dynamic_shapes=architecture.dynamic_shapes,
        )
    assert small.model is model
    assert small.report.params_removed > 0.3
    wanted = outputs(model, architecture)
    assert error(wanted, outputs(masked(dense, small.plan, READS_ZERO.get(name, ())), architecture)) < TOLERANCE

    small.plan.save(tmp_path / "plan.json")
    fresh = build(name, seed=1).model
    ChannelPlan.load(tmp_path / "plan.json").apply(fresh)
    fresh.load_state_dict(model.state_dict())
    assert error(outputs(fresh, architecture), wanted) == 0.0
    assert str(fresh) == str(model), "attributes are replayed, too"


@pytest.mark.parametrize("name", FIXED)
def test_groups_that_the_code_fixes_are_kept_whole_on_request(name: str) -> None:
    architecture = build(name)
    dense = copy.deepcopy(architecture.model)
    small = shrink(
        architecture.model, architecture.args, criterion=Random(3), fraction_removed=0.5, ranking="layer", fixed="keep"
    )
    assert {group.name for group in small.report.groups if group.reason} == FIXED[name]
    assert all((group.removed == 0) == (group.name in FIXED[name]) for group in small.report.groups)
    reference = masked(dense, small.plan)
    assert error(outputs(architecture.model, architecture), outputs(reference, architecture)) < TOLERANCE


def test_attributes_follow_and_the_repr_says_so() -> None:
    model = net()
    shrink(model, (X,), criterion=Magnitude(), fraction_removed=0.5, ranking="layer")
    assert (model.conv1.out_channels, model.bn1.num_features, model.conv2.in_channels) == (4, 4, 4)
    assert (model.fc1.in_features, model.fc1.out_features, model.fc2.in_features) == (16, 5, 5)
    assert model.conv3.weight.shape == (4, 6, 3, 3)
    assert model.fc2.out_features == 5, "classes stay"
    assert "Conv2d(3, 4" in str(model)


def test_it_trains_and_modes_and_gradients_stay() -> None:
    model = net().train()
    model.conv1.weight.requires_grad_(False)
    shrink(model, (X,), criterion=Magnitude(), target_flops=0.5)
    assert model.training
    assert not model.conv1.weight.requires_grad
    assert all(type(p) is nn.Parameter and p.is_leaf and p.grad is None for p in model.parameters())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    labels = torch.tensor([0, 1, 2, 3])
    losses = []
    for _ in range(15):
        loss = nn.functional.cross_entropy(model(X), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


class TwoNames(nn.Module):
    """An embedding under two names, its first one in a submodule."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.fc, self.head = nn.Embedding(7, 6), nn.Linear(6, 6), nn.Linear(6, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(torch.relu(self.fc(self.embed(x))) + self.embed(x))
        return y


def test_a_shared_tensor_stays_shared() -> None:
    model = TwoNames()
    small = shrink(model, (torch.tensor([[1, 2]]),), criterion=Magnitude(), fraction_removed=0.5)
    assert model.head.weight is model.embed.weight
    assert model.head.weight.shape == (7, 3)
    assert (model.head.in_features, model.embed.embedding_dim) == (3, 3)
    fresh = TwoNames()
    small.plan.apply(fresh)
    assert fresh.head.weight is fresh.embed.weight
    fresh.load_state_dict(model.state_dict())


class NoWeights(nn.Module):
    """Norms that have no tensors of their own,."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 3)
        self.norm = nn.LayerNorm(8, elementwise_affine=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.fc2(torch.tanh(self.norm(self.fc1(x))))
        return y


def test_a_norm_without_weights_follows() -> None:
    model = NoWeights()
    shrink(model, (torch.randn(2, 6),), criterion=Magnitude(), fraction_removed=0.5)
    assert model.norm.normalized_shape == (4,)
    assert model(torch.randn(5, 6)).shape == (5, 3)


class Encoder(nn.Module):
    """Layers of torch.nn, which check that their heads make up the residual stream, and have a fast path of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(7, 16), nn.Linear(16, 3)
        self.layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True, norm_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.last(self.layer(self.first(x)).mean(1))
        return y


def test_attention_of_torch_shrinks_with_its_residual_stream() -> None:
    torch.manual_seed(0)
    model, x = Encoder().eval(), torch.randn(2, 5, 7)
    shrink(model, (x,), criterion=Magnitude(), target_params=0.6, fixed="keep")
    attention = model.layer.self_attn
    assert (attention.num_heads, attention.embed_dim) == (4, 4 * attention.head_dim)
    assert attention.head_dim < 4
    assert attention.in_proj_weight.shape == (3 * attention.embed_dim, attention.embed_dim)
    with torch.no_grad():
        fast = model(x)
    # float32, another kernel: sums of some ten terms in another order
    assert torch.allclose(model.train(False)(x), fast, rtol=0, atol=1e-5)
    model.train()(x).sum().backward()


class Heads(nn.Module):
    """Attention that takes its numbers from attributes, and leaves the scale to torch."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim = 4, 4  # equal on purpose: which is which has to be told by their names
        self.qkv, self.out = nn.Linear(6, 48), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        z: torch.Tensor = self.out(y.reshape(batch, tokens, -1))
        return z


def test_numbers_of_heads_and_head_dims_follow() -> None:
    model = Heads()
    dense = copy.deepcopy(model)
    x = torch.randn(2, 5, 6)
    ratios = {"qkv.weight[0][0:16]:[4]x4": 0.5, "qkv.weight[0][0:16]:4x[4]": 0.25}
    small = shrink(model, (x,), criterion=Random(0), target_params=1.0, ratios=ratios)
    assert (model.num_heads, model.head_dim) == (2, 3)
    assert model.qkv.weight.shape == (18, 6)
    # float32: sums of some ten terms; the scale of the dense head dim is kept, or this would differ by percents
    assert torch.allclose(model(x), masked(dense, small.plan)(x), rtol=0, atol=1e-5)


def test_the_graph_is_left_as_it_is_and_a_new_one_returned() -> None:
    model = net()
    gm = capture(model, (X,))
    before = {name: tensor.clone() for name, tensor in gm.state_dict().items()}
    wanted = gm(X)
    small = shrink(gm, criterion=Random(0), fraction_removed=0.5, ranking="layer")
    assert small.model is not gm
    assert torch.equal(gm(X), wanted)
    assert all(torch.equal(tensor, before[name]) for name, tensor in gm.state_dict().items())
    in_place = shrink(model, (X,), criterion=Random(0), fraction_removed=0.5, ranking="layer")
    # The same weights in the same order of operations: only the order of sums in kernels may differ.
    assert torch.allclose(small.model(X), in_place.model(X), rtol=0, atol=1e-5)


def test_any_number_of_examples_and_a_batch_of_one() -> None:
    model = net()
    small = shrink(model, (X[:1],), criterion=Random(0), target_params=0.6)
    assert small.report.params_after <= 0.6 * small.report.params_before
    assert model(X).shape == (4, 5)


class Caching(nn.Module):
    """Keeps what its forward computed in plain attributes, as detection heads do with their anchors."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.shape, self.offsets = net(), torch.Size(), torch.empty(0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[2:] != self.shape:
            self.shape, self.offsets, self.scale = x.shape[2:], torch.arange(5.0), torch.ones(1)
        y: torch.Tensor = self.net(x) + self.offsets * self.scale
        return y


@pytest.mark.filterwarnings("ignore:The tensor attribute:UserWarning")  # torch.export says what it found
def test_what_a_forward_keeps_is_not_left_fake() -> None:
    model = Caching().eval()
    shrink(model, (X,), criterion=Random(), fraction_removed=0.5, ranking="layer")
    assert model.shape == torch.Size()
    assert "scale" not in vars(model)
    assert model(X).isfinite().all()


class ReadsANumber(nn.Module):
    """Multiplies by a Python number that a buffer holds: a size without bounds for torch.export."""

    scale: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.net = net()
        self.register_buffer("scale", torch.tensor([2.0, -3.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.net(x) * self.scale[1].item()
        return y


def test_a_number_read_from_a_tensor_is_no_obstacle() -> None:
    model = ReadsANumber().eval()
    before = sum(p.numel() for p in model.parameters())
    shrink(model, (X,), criterion=Random(), fraction_removed=0.5, ranking="layer")
    assert sum(p.numel() for p in model.parameters()) < before
    assert torch.equal(model(X), model.net(X) * -3)
