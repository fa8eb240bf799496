"""Does expressiveness rank channels alike when it sees less: few images, noise, or the network before training?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from exprune_fx.graph import capture
from exprune_fx.report.layout import Section
from exprune_fx.static import Expressiveness, Noise, Scene
from exprune_fx.static.criteria.base import Scores
from exprune_fx.static.units import bundles
from exprune_fx.studies.static.classifiers import Classifier, Labelled
from exprune_fx.studies.static.tables import section
from exprune_fx.symmetry import symmetries

Say = Callable[[str], None]
FEW = 64
DRAWS = 5
ALL = "all images"


@dataclass(frozen=True)
class Agreement:
    """How alike one way to score ranks the members of every group, against all images and the trained network.

    Attributes:
        way: what was scored.
        correlation: group name -> Spearman's rank correlation, -1 to 1; the mean over draws.
        shared: group name -> of the half that goes by all images, the fraction that goes by this too; 0.5 is chance.
    """

    way: str
    correlation: Mapping[str, float]
    shared: Mapping[str, float]

    @property
    def mean(self) -> float:
        """Mean correlation over the groups."""
        return sum(self.correlation.values()) / len(self.correlation)

    @property
    def mean_shared(self) -> float:
        """Mean of what is shared over the groups."""
        return sum(self.shared.values()) / len(self.shared)


@dataclass(frozen=True)
class Ranks:
    """All ways of one model.

    Attributes:
        model: its name.
        images: how many "all" are.
        draws: how many times few images, and noise, were drawn.
        sizes: group name -> members.
        agreements: one for each way.
    """

    model: str
    images: int
    draws: int
    sizes: Mapping[str, int]
    agreements: tuple[Agreement, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, means included."""
        means = {each.way: {"correlation": each.mean, "shared": each.mean_shared} for each in self.agreements}
        return asdict(self) | {"means": means}


def ranked(values: Tensor) -> Tensor:
    """Ranks from 0 of a vector's elements, ties sharing the mean of theirs (float64)."""
    _, inverse, counts = torch.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).to(torch.float64)
    middle = last - (counts.to(torch.float64) + 1) / 2
    found: Tensor = middle[inverse]
    return found


def spearman(one: Tensor, other: Tensor) -> float:
    """Spearman's rank correlation of two vectors; 0 where either is constant."""
    pair = torch.stack([ranked(one), ranked(other)])
    pair = pair - pair.mean(1, keepdim=True)
    norms = pair.norm(dim=1)
    return float((pair[0] * pair[1]).sum() / (norms[0] * norms[1])) if bool((norms > 0).all()) else 0.0


def shared_half(one: Tensor, other: Tensor) -> float:
    """Of the lower half by the one, the fraction that is in the lower half by the other."""
    half = max(len(one) // 2, 1)
    first, second = (set(v.argsort(stable=True)[:half].tolist()) for v in (one, other))
    return len(first & second) / half


def run_ranks(subject: Classifier, images: Labelled, say: Say, *, seed: int = 0, draws: int = DRAWS) -> Ranks:
    """Scores the trained and the untrained network by all images, by few, and by noise.

    Args:
        subject: the model.
        images: all images.
        say: told what is being done.
        seed: of the draws, and of the random weights.
        draws: of few images and of noise; agreements are means over them.
    """
    torch.manual_seed(seed)
    untrained = subject.initial().eval()
    networks = {"trained": subject.make(), "at initialisation": untrained}
    reference: Scores | None = None
    found: list[Agreement] = []
    sizes: dict[str, int] = {}
    for network, model in networks.items():
        scene = _scene(model, subject.args)
        own: Scores | None = None
        for data, criteria in _ways(images, seed, draws):
            say(f"{subject.name}, {network}: {data}")
            scores = [criterion.scores(scene) for criterion in criteria]
            own = own or scores[0]
            reference = reference or scores[0]
            sizes = sizes or {name: each.numel() for name, each in scores[0].items()}
            if data != ALL or network != "trained":
                found.append(_agreement(f"{network}, {data}", scores, reference))
            if network != "trained" and data != ALL:
                found.append(_agreement(f"{network}, {data}; against {network}, {ALL}", scores, own))
    return Ranks(subject.name, len(images), draws, sizes, tuple(found))


def _ways(images: Labelled, seed: int, draws: int) -> Iterator[tuple[str, list[Expressiveness]]]:
    yield ALL, [Expressiveness(images.inputs())]
    generator = torch.Generator().manual_seed(seed)
    chosen = [torch.randperm(len(images), generator=generator)[:FEW] for _ in range(draws)]
    yield f"{FEW} images", [Expressiveness([(images.images[each],)]) for each in chosen]
    yield f"{FEW} inputs of noise", [Expressiveness(Noise(FEW, seed + draw)) for draw in range(draws)]


def _scene(model: nn.Module, args: tuple[Tensor, ...]) -> Scene:
    gm = capture(model, args, dynamic_shapes=({0: torch.export.Dim.AUTO},))
    report = symmetries(gm)
    return Scene(gm, report, tuple(g for b in bundles(gm, report) if not b.reason for g in b.groups))


def _agreement(way: str, scores: list[Scores], reference: Scores) -> Agreement:
    def mean(figure: Callable[[Tensor, Tensor], float], name: str) -> float:
        return sum(figure(each[name].flatten(), reference[name].flatten()) for each in scores) / len(scores)

    return Agreement(
        way, {name: mean(spearman, name) for name in reference}, {name: mean(shared_half, name) for name in reference}
    )


def ranks_section(ranks: Ranks) -> Section:
    """A row for each group, a column for each way, and the means."""
    rows = [
        (name, f"{size:,}", *(f"{each.correlation[name]:.3f}" for each in ranks.agreements))
        for name, size in ranks.sizes.items()
    ]
    rows.append(("mean", "", *(f"{each.mean:.3f}" for each in ranks.agreements)))
    rows.append(("of the lower half, shared", "", *(f"{each.mean_shared:.3f}" for each in ranks.agreements)))
    ways = "; ".join(f"({i + 1}) {each.way}" for i, each in enumerate(ranks.agreements))
    return section(
        f"Rank agreement of expressiveness: {ranks.model}",
        f"Spearman's correlation with the trained network's scores on {ranks.images:,} images, unless said otherwise; "
        f"few images and noise are means over {ranks.draws} draws. {ways}.",
        ("group", ">members", *(f">({i + 1})" for i in range(len(ranks.agreements)))),
        rows,
    )
