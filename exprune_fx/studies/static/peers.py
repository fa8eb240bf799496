"""Beside Torch-Pruning: how many groups each finds, what each can shrink, and how long the analysis takes."""

from __future__ import annotations

import copy
import importlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from exprune_fx.errors import ExpruneError
from exprune_fx.graph import capture
from exprune_fx.report.layout import Section
from exprune_fx.static import Magnitude, shrink
from exprune_fx.static.units import bundles
from exprune_fx.studies.static.architectures.vit import Attention
from exprune_fx.studies.static.tables import percent, section
from exprune_fx.symmetry import symmetries

Say = Callable[[str], None]
VERSION = "1.6.1"
_LAYERS = (nn.Conv2d, nn.Linear)


@dataclass(frozen=True)
class Side:
    """What one of the two made of a model.

    Attributes:
        groups: that can lose members.
        tied: pairs of layers with outputs that go together.
        analyse_s: processor time to find them, of one run, tracing included.
        params_removed: fraction of the parameters, when the same fraction of every group went; None where it failed.
        problem: why it failed, or the shrunk model did not run; "" where all went well.
    """

    groups: int = 0
    tied: frozenset[tuple[str, str]] = frozenset()
    analyse_s: float = 0.0
    params_removed: float | None = None
    problem: str = ""


@dataclass(frozen=True)
class Pair:
    """Both on one model.

    Attributes:
        model: its name.
        params: how many it has.
        ours: this library.
        theirs: Torch-Pruning.
    """

    model: str
    params: int
    ours: Side
    theirs: Side

    @property
    def coarser(self) -> int:
        """Pairs of layers that only ours ties."""
        return len(self.ours.tied - self.theirs.tied)

    @property
    def finer(self) -> int:
        """Pairs of layers that only theirs ties."""
        return len(self.theirs.tied - self.ours.tied)

    def to_dict(self) -> dict[str, Any]:
        """Plain data; numbers of pairs for the pairs."""
        found = asdict(self) | {"coarser": self.coarser, "finer": self.finer}
        for side in ("ours", "theirs"):
            found[side]["tied"] = len(found[side]["tied"])
        return found


def torch_pruning() -> Any:
    """The other library.

    Raises:
        ExpruneError: it is not installed.
    """
    try:
        return importlib.import_module("torch_pruning")
    except ImportError as error:
        raise ExpruneError(
            f"Torch-Pruning cannot be imported: {error}", hint=f"pip install --no-deps torch-pruning=={VERSION}"
        ) from error


def run_peers(
    makers: Mapping[str, Callable[[], nn.Module]],
    sizes: Mapping[str, int],
    say: Say,
    *,
    fraction: float = 0.4,
    seed: int = 0,
    on_pair: Callable[[tuple[Pair, ...]], None] = lambda _: None,
) -> tuple[Pair, ...]:
    """Analyses and shrinks every model with both.

    Args:
        makers: models by name, with random weights.
        sizes: height and width of the example images, by the same names.
        say: told what is being done.
        fraction: of every group's members that goes.
        seed: of weights and images.
        on_pair: given all that there is so far, after every model.

    Raises:
        ExpruneError: Torch-Pruning is not installed.
    """
    other = torch_pruning()
    found: tuple[Pair, ...] = ()
    for name, make in makers.items():
        torch.manual_seed(seed)
        model = make().eval()
        images = torch.randn(2, 3, sizes[name], sizes[name])
        say(f"{name}: Torch-Pruning")
        theirs = _theirs(other, copy.deepcopy(model), images, fraction)
        say(f"{name}: ours")
        params = sum(parameter.numel() for parameter in model.parameters())
        found = (*found, Pair(name, params, _ours(model, images, fraction), theirs))
        on_pair(found)
    return found


def _ours(model: nn.Module, images: Tensor, fraction: float) -> Side:
    start = time.process_time()
    gm = capture(model, (images,))
    report = symmetries(gm)
    free = [group for bundle in bundles(gm, report) if not bundle.reason for group in bundle.groups]
    analyse_s = time.process_time() - start
    layers = {f"{path}.weight": path for path, module in model.named_modules() if isinstance(module, _LAYERS)}
    tied = _pairs({layers[m.target] for m in group.members if m.target in layers and m.dim == 0} for group in free)
    whole = _shapes(model, images)
    try:
        report_of = shrink(
            model, (images,), criterion=Magnitude(), fraction_removed=fraction, ranking="layer", fixed="keep"
        ).report
        problem = "" if _shapes(model, images) == whole else "gives other shapes"
    except ExpruneError as error:
        return Side(len(free), tied, analyse_s, problem=error.what)
    return Side(len(free), tied, analyse_s, report_of.params_removed, problem)


def _theirs(other: Any, model: nn.Module, images: Tensor, fraction: float) -> Side:
    """Any failure is reported: whatever the other library, or the model after it, raises."""
    names = {module: path for path, module in model.named_modules()}
    last = _last_layers(model, images)
    count, tied, analyse_s = 0, frozenset[tuple[str, str]](), 0.0
    try:
        start = time.process_time()
        graph = other.DependencyGraph().build_dependency(model, example_inputs=images)
        groups = list(graph.get_all_groups(ignored_layers=last, root_module_types=list(_LAYERS)))
        analyse_s, count = time.process_time() - start, len(groups)
        tied = _pairs(
            {
                names[item.dep.target.module]
                for item in group
                if graph.is_out_channel_pruning_fn(item.dep.handler) and isinstance(item.dep.target.module, _LAYERS)
            }
            for group in groups
        )
        before, whole = sum(p.numel() for p in model.parameters()), _shapes(model, images)
        other.pruner.MetaPruner(
            model,
            images,
            importance=other.importance.MagnitudeImportance(p=2),
            pruning_ratio=fraction,
            ignored_layers=last,
            num_heads={
                projection: attention.heads
                for attention in model.modules()
                if isinstance(attention, Attention)
                for projection in (attention.query, attention.key, attention.value)
            },
        ).step()
        removed = 1 - sum(p.numel() for p in model.parameters()) / before
        problem = "" if _shapes(model, images) == whole else "gives other shapes"
    except Exception as error:  # noqa: BLE001 (a third party's)
        return Side(count, tied, analyse_s, problem=f"{type(error).__name__}: {str(error).splitlines()[0][:80]}")
    return Side(count, tied, analyse_s, removed, problem)


def _last_layers(model: nn.Module, images: Tensor) -> list[nn.Module]:
    """Layers with outputs that are the model's, which keep them: as our analysis says."""
    gm = capture(model, (images,))
    report = symmetries(gm)
    free = {m.target for b in bundles(gm, report) if not b.reason for g in b.groups for m in g.members if m.dim == 0}
    return [m for path, m in model.named_modules() if isinstance(m, _LAYERS) and f"{path}.weight" not in free]


def _pairs(groups: Iterable[set[str]]) -> frozenset[tuple[str, str]]:
    return frozenset(pair for layers in groups for pair in combinations(sorted(layers), 2))


def _shapes(model: nn.Module, images: Tensor) -> list[torch.Size]:
    with torch.no_grad():
        return [leaf.shape for leaf in pytree.tree_leaves(model(images))]


def peers_section(pairs: Sequence[Pair], fraction: float = 0.4) -> Section:
    """A row for each model."""
    rows = [
        (
            pair.model,
            f"{pair.params / 1e6:.2f}",
            *(f"{side.groups}" for side in (pair.ours, pair.theirs)),
            f"{pair.coarser}",
            f"{pair.finer}",
            *(f"{side.analyse_s:.1f}" for side in (pair.ours, pair.theirs)),
            *("failed" if side.problem else percent(side.params_removed, 1) for side in (pair.ours, pair.theirs)),
        )
        for pair in pairs
    ]
    failed = [
        f"{pair.model}, {whose}: {side.problem}."
        for pair in pairs
        for whose, side in (("ours", pair.ours), ("theirs", pair.theirs))
        if side.problem
    ]
    return section(
        f"Beside Torch-Pruning {VERSION}",
        "Groups that can lose members, ours and theirs. Ties: pairs of layers with outputs that go together, that only "
        "one of the two ties: only ours would be coarser, only theirs makes ours finer. Analysis: processor time, "
        f"tracing included, in seconds. Removed: parameters, in %, when {100 * fraction:.0f} % of every group's "
        "members go by magnitude and the shrunk model runs and gives the same shapes. Random weights. "
        + " ".join(failed),
        (
            *("model", ">parameters, M", ">groups", ">theirs", ">ties: only ours", ">only theirs"),
            *(">analysis", ">theirs", ">removed", ">theirs"),
        ),
        rows,
    )
