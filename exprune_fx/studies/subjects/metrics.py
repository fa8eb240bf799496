"""Metrics: what is kept of every example, the number that it makes, and how sure a difference of two is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from exprune_fx.errors import DataError
from exprune_fx.tuning.score import bootstrap_interval

RESAMPLES = 1000


class Metric(ABC):
    """A number between 0 and 1, higher is better; a point is a hundredth of it.

    Attributes:
        name: of the metric, as tables show it.
        is_mean: the metric is the mean of the first column of what is kept of the examples.
        counts: that column is 0 or 1, so that one example is the least that the metric can tell.
    """

    name: str
    is_mean = True
    counts = False

    @abstractmethod
    def each(self, output: Any, target: Tensor) -> Tensor:
        """What is kept of one batch: float64, [examples, columns].

        Args:
            output: what the model returned.
            target: what is right.
        """

    def value(self, each: Tensor) -> float:
        """The metric of the examples kept."""
        return float(each[:, 0].mean())

    def defined(self, each: Tensor) -> bool:  # noqa: ARG002 - most metrics always are
        """Whether these examples make a number."""
        return True

    def extras(self, each: Tensor) -> dict[str, float]:  # noqa: ARG002 - most metrics have none
        """Further figures, which nothing is selected by."""
        return {}


class Accuracy(Metric):
    """Share of the examples whose highest logit, [examples, classes], is at the target, [examples]."""

    name = "accuracy"
    counts = True

    def each(self, output: Any, target: Tensor) -> Tensor:
        """1 where right, else 0."""
        right: Tensor = output.argmax(1) == target
        return right.double().unsqueeze(1)


class TokenAccuracy(Metric):
    """Share of the positions whose highest logit, [windows, positions, vocabulary], is the next token.

    One example is one window, since neighbouring positions are not independent; all windows have the same length.
    """

    name = "next-token accuracy"

    def each(self, output: Any, target: Tensor) -> Tensor:
        """Share of right positions, and mean negative log-likelihood in nats, of each window."""
        right = (output.argmax(-1) == target).double().mean(1)
        loss = F.cross_entropy(output.float().flatten(0, 1), target.flatten(), reduction="none")
        return torch.stack([right, loss.double().reshape(target.shape).mean(1)], 1)

    def extras(self, each: Tensor) -> dict[str, float]:
        """Perplexity."""
        return {"perplexity": float(each[:, 1].mean().exp())}


class RocAuc(Metric):
    """Area under the ROC curve: the chance that a positive example scores above a negative one, ties counting half."""

    name = "ROC-AUC"
    is_mean = False

    def each(self, output: Any, target: Tensor) -> Tensor:
        """Score and label of each example, from outputs [examples, 1] or [examples]."""
        return torch.stack([output.detach().reshape(-1).double(), target.double()], 1)

    def defined(self, each: Tensor) -> bool:
        """Whether there are examples of both classes."""
        return 0 < int((each[:, 1] > 0.5).sum()) < len(each)

    def value(self, each: Tensor) -> float:
        """By the ranks of the positives (Mann and Whitney 1947): exact, ties included.

        Raises:
            DataError: all examples are of one class.
        """
        scores, positive = each[:, 0], each[:, 1] > 0.5
        count = int(positive.sum())
        others = len(positive) - count
        if not self.defined(each):
            raise DataError("ROC-AUC of examples of one class only", hint="give more examples")
        _, place, sizes = torch.unique(scores, return_inverse=True, return_counts=True)
        ranks = (sizes.cumsum(0).double() - (sizes.double() - 1) / 2)[place]
        return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * others))


def drop_interval(
    metric: Metric, dense: Tensor, staged: Tensor, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """The paired bootstrap's interval of ``dense - staged``; draws without a metric, as of one class, are drawn again.

    Args:
        metric: of both.
        dense: what was kept of the dense model's examples, [examples, columns].
        staged: likewise, in the same order.
        seed: of the draws.
        level: of confidence.
    """

    def drop_of(drawn: Tensor) -> float | None:
        if not metric.defined(dense[drawn]):
            return None
        return metric.value(dense[drawn]) - metric.value(staged[drawn])

    return bootstrap_interval(drop_of, len(dense), RESAMPLES, seed, level)
