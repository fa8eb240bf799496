from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from exprune_fx.errors import DataError
from exprune_fx.zoo import normalise, resnet_fashion, vgg_fashion
from exprune_fx.zoo.train import Recipe, augment, batches, main, train
from exprune_fx.zoo.weights import load_weights, save_weights
from tests.zoo.fashion import publish


def striped(count: int = 64) -> tuple[Tensor, Tensor]:
    """Images that a few steps can learn: class 0 has stripes across, class 1 stripes down, both with noise."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(count) % 2
    stripes = (torch.arange(28) // 2 % 2 * 160).to(torch.uint8)
    across = stripes[:, None].expand(28, 28)
    images = torch.where((labels == 0)[:, None, None], across, across.T)
    return images + torch.randint(0, 64, images.shape, generator=generator, dtype=torch.uint8), labels


@pytest.mark.parametrize("bfloat16", [False, True])
def test_one_step_is_deterministic(bfloat16: bool) -> None:
    images, labels = striped(8)
    recipe = Recipe(epochs=1, seed=3, batch_size=8, bfloat16=bfloat16)
    first, second = (train(vgg_fashion, images, labels, recipe).state_dict() for _ in range(2))
    other = train(vgg_fashion, images, labels, Recipe(epochs=1, seed=4, batch_size=8)).state_dict()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
    assert not torch.equal(first["features.0.weight"], other["features.0.weight"])


def test_loss_falls_on_a_tiny_set() -> None:
    images, labels = striped()
    losses: list[float] = []
    steps: list[int] = []
    recipe = Recipe(epochs=5, batch_size=16, peak_lr=0.05)

    def on_step(step: int, loss: float) -> None:
        steps.append(step)
        losses.append(loss)

    model = train(resnet_fashion, images, labels, recipe, on_step)
    assert steps == list(range(20))
    assert losses[0] > 1.5  # ten classes, random weights: about log 10 = 2.3
    assert sum(losses[-4:]) / 4 < 0.6 * losses[0]
    assert not model.training
    assert all(p.is_contiguous() for p in model.parameters())


@pytest.mark.parametrize(("epochs", "batch_size"), [(0, 8), (1, 65)])
def test_training_without_a_step_is_refused(epochs: int, batch_size: int) -> None:
    with pytest.raises(DataError, match="make no training step"):
        train(vgg_fashion, *striped(64), Recipe(epochs=epochs, batch_size=batch_size))


def test_augment_shifts_and_mirrors_and_nothing_else() -> None:
    image = torch.zeros(28, 28, dtype=torch.uint8)
    image[10, 5] = 200  # one bright pixel, well inside: it can move, but not leave
    out = augment(image.expand(400, 28, 28), torch.Generator().manual_seed(0))
    assert out.shape == (400, 28, 28)
    assert out.dtype == torch.uint8
    assert torch.equal(out.sum((1, 2), dtype=torch.int64), torch.full((400,), 200))
    count, row, column = out.nonzero(as_tuple=True)
    assert torch.equal(count, torch.arange(400))
    assert set(row.tolist()) == set(range(8, 13))
    assert set(column.tolist()) == set(range(3, 8)) | set(range(20, 25))  # 5 +- 2, and mirrored 22 +- 2
    mirrored = (column > 13).float().mean().item()
    assert 0.4 < mirrored < 0.6  # binomial, 400 draws: four standard deviations are 0.1


def test_batches_cover_each_image_at_most_once() -> None:
    images = torch.arange(20, dtype=torch.uint8)[:, None, None].expand(20, 28, 28)
    labels = torch.arange(20)
    got = list(batches(images, labels, Recipe(batch_size=8), torch.Generator().manual_seed(0)))
    assert [tuple(x.shape) for x, _ in got] == [(8, 1, 28, 28)] * 2
    seen = torch.cat([y for _, y in got])
    assert len(seen.unique()) == 16
    assert not torch.equal(seen, seen.sort().values)


def test_plain_batches_are_the_images_as_they_are() -> None:
    images, labels = striped(8)
    ((got, chosen),) = batches(images, torch.arange(8), Recipe(batch_size=8, augmented=False), torch.Generator())
    assert torch.equal(got, normalise(images[chosen]))
    assert torch.equal(chosen.sort().values, torch.arange(len(labels)))


def test_weights_survive_the_round_trip_but_for_rounding(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, copy = vgg_fashion(), vgg_fashion()
    save_weights(model, tmp_path / "deep" / "vgg.pt")
    load_weights(copy, tmp_path / "deep" / "vgg.pt")
    for name, tensor in model.state_dict().items():
        loaded = copy.state_dict()[name]
        assert loaded.dtype == tensor.dtype
        # float16 has 11 significant bits; below its smallest normal number the error is absolute
        torch.testing.assert_close(loaded, tensor, rtol=2**-11, atol=2**-25)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["vgg.pt"]


def test_weights_that_float16_cannot_hold_are_refused(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    nn.init.constant_(model.weight, 1e6)
    with pytest.raises(DataError, match=r"weight \(shape \(2, 2\)\)"):
        save_weights(model, tmp_path / "linear.pt")
    assert list(tmp_path.iterdir()) == []


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    save_weights(vgg_fashion(), tmp_path / "vgg.pt")
    with pytest.raises(DataError, match="do not fit ResnetFashion"):
        load_weights(resnet_fashion(), tmp_path / "vgg.pt")


def test_command_trains_and_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(tmp_path, monkeypatch)
    out = tmp_path / "out" / "vgg.pt"
    options = ["--model", "vgg", "--data-dir", str(tmp_path), "--out", str(out), "--epochs", "1", "--batch-size", "6"]
    main(options)
    assert "% of 5 test images" in capsys.readouterr().out
    first = vgg_fashion()
    load_weights(first, out)
    again = tmp_path / "again.pt"
    main([*options, "--out", str(again), "--init", str(out), "--plain", "--peak-lr", "1e-9"])
    second = vgg_fashion()
    load_weights(second, again)
    # a learning rate of nothing: what came out is what went in, but for the batch norms' running statistics
    torch.testing.assert_close(dict(second.named_parameters()), dict(first.named_parameters()), rtol=1e-3, atol=1e-6)
