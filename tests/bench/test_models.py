"""The decoder's attention and plan, and VGG11-BN's files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from exprune_fx import zoo
from exprune_fx.bench import opt_shaped, vgg
from exprune_fx.bench.models import make_vgg, model_names, model_specs
from exprune_fx.bench.selection import select_rows
from exprune_fx.bench.touched import count_touched
from exprune_fx.errors import DataError
from exprune_fx.graph import capture
from exprune_fx.guards import StatsTest
from exprune_fx.pipeline import normalise, transform
from exprune_fx.plan import Plan, SitePlan
from exprune_fx.sites import find_sites


def test_attention_over_cache_and_self_is_attention_over_both() -> None:
    torch.manual_seed(0)
    attention = opt_shaped.Attention(32, 4)
    x, keys, values = torch.randn(2, 1, 32), torch.randn(2, 4, 6, 8), torch.randn(2, 4, 6, 8)
    out, key, value = attention(x, keys, values)
    query = attention._split(attention.q_proj(x))
    whole = F.scaled_dot_product_attention(query, torch.cat([keys, key], 2), torch.cat([values, value], 2))
    torch.testing.assert_close(out, attention.out_proj(whole.transpose(1, 2).flatten(2)))
    assert key.shape == value.shape == (2, 4, 1, 8)


def test_the_decoder_stops_and_zeroes_as_promised() -> None:
    subject = opt_shaped.make_opt_shaped(torch.float32, 1, lambda _: None, layers=2, hidden=128, heads=4)
    assert [entry.site for entry in subject.plan.staged] == ["layers.0.fc1", "layers.1.fc1"]
    touched = count_touched(transform(subject.gm, subject.plan, lower=False), subject.inputs)
    # Quantiles of 64 tokens, seen on 4 others over 1,024 neurons.
    assert touched.stopped_fraction == pytest.approx(opt_shaped.STOPPED, abs=0.08)
    assert touched.zero_fraction == pytest.approx(0.9, abs=0.05)
    x, keys, _ = subject.inputs[0]
    assert (x.shape, keys.shape) == ((1, 1, 128), (2, 1, 4, 256, 32))


def test_a_plan_of_the_users_own_takes_the_place_of_calibration() -> None:
    sites = find_sites(normalise(capture(zoo.load("vgg_fashion"), (zoo.load_sample().test_images[:2],))))
    staged = next(site for site in sites if site.exchangeable and site.terms >= 16)
    by_hand = SitePlan(staged.name, staged.weight_shape, "prefix", "by hand", StatsTest(0.3), (staged.terms // 4,))
    dense = [SitePlan(site.name, site.weight_shape, reason="left dense") for site in sites]
    plan = Plan(tuple(by_hand if entry.site == staged.name else entry for entry in dense))
    (spec,) = select_rows((), ["vgg_fashion"], plan=plan)
    subject = spec.make(lambda said: pytest.fail(f"calibrated: {said}"))
    assert subject.plan is plan
    touched = count_touched(transform(subject.gm, subject.plan, lower=False), subject.inputs[:2])
    assert touched.stopped_fraction > 0
    for filters, models in ((["_fashion"], []), ([], ["opt_shaped"]), (["conv_64"], [])):
        with pytest.raises(DataError, match="a plan is of one model"):
            select_rows(filters, models, plan=plan)


# --- VGG11-BN ---------------------------------------------------------------------------------------------------------


def write_images(path: Path, pixels: np.ndarray) -> None:
    """As the files hold them: red and blue less green, then differences along the width."""
    stored = pixels.copy()
    stored[:, 0] -= pixels[:, 1]
    stored[:, 2] -= pixels[:, 1]
    delta = np.diff(stored, axis=-1, prepend=np.zeros((*stored.shape[:3], 1), np.uint8)).astype(np.uint8)
    np.savez(path, delta=delta, labels=np.arange(len(pixels)))


def test_images_come_back_as_they_were(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), np.uint8)
    (tmp_path / "cifar10").mkdir()
    write_images(tmp_path / "cifar10" / "train_5.npz", pixels)
    images, labels = vgg.load_images(tmp_path, "train_5")
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in ((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)))
    torch.testing.assert_close(((images * std + mean) * 255).round().to(torch.uint8), torch.from_numpy(pixels))
    assert labels.tolist() == [0, 1, 2]


def test_half_precision_weights_are_widened(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = {
        name: value.half() if value.is_floating_point() else value
        for name, value in vgg.vgg11_bn().state_dict().items()
    }
    torch.save(state, tmp_path / vgg.CHECKPOINT)
    model = vgg.load_vgg(tmp_path)
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert vgg.NAME in model_names(tmp_path)
    assert vgg.NAME in {spec.name for spec in model_specs(tmp_path)}


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    (tmp_path / vgg.CHECKPOINT).write_bytes(b"no archive")
    (tmp_path / "train_1.npz").write_bytes(b"no archive")
    with pytest.raises(DataError, match=vgg.CHECKPOINT):
        vgg.load_vgg(tmp_path)
    with pytest.raises(DataError, match=r"train_1\.npz is not a file of CIFAR-10 images"):
        vgg.load_images(tmp_path, "train_1")
    with pytest.raises(DataError, match=r"train_2\.npz is neither in"):
        vgg.load_images(tmp_path, "train_2")
    with pytest.raises(DataError, match="needs CIFAR-10"):
        make_vgg(tmp_path, None, torch.float32, 1, 0.01, lambda _: None)


def test_without_weights_there_is_no_row(tmp_path: Path) -> None:
    assert vgg.NAME not in model_names(tmp_path)
    assert vgg.NAME not in model_names(None)
