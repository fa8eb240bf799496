"""Figures of the ExPrune paper (arXiv 2506.02210): shares of FLOPs removed, by drop of the metric as a fraction."""

from __future__ import annotations

BY_SUBJECT: dict[str, dict[float, float]] = {"vgg11": {0.001: 0.1098, 0.01: 0.2101}}
"""Where the paper's abstract or text names one model's figure."""

RANGES = (
    ("v1, all models", {0.001: (0.1098, 0.263), 0.01: (0.2101, 0.3905)}),
    ("v2, all models", {0.001: (0.1098, 0.1733), 0.01: (0.2161, 0.2716)}),
    ("statically pruned", {0.001: (0.1024, 0.1111), 0.01: (0.1391, 0.1439)}),
)
"""Ranges over models, of its two versions."""


def published_figure(subject: str, max_drop: float) -> float | None:
    """The paper's own figure of this subject; None where it gives only ranges."""
    return BY_SUBJECT.get(subject, {}).get(max_drop)


def published_ranges(pruned: bool) -> list[str]:
    """The ranges in words; of statically pruned models, or of the others."""
    lines = []
    for name, by_drop in RANGES:
        if (name == "statically pruned") == pruned:
            said = [f"{100 * a:.2f}-{100 * b:.2f} % at {100 * drop:g}" for drop, (a, b) in by_drop.items()]
            lines.append(f"paper, {name}: {', '.join(said)} points")
    return lines
