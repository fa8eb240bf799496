"""The evaluations of a search, kept in a file: interrupted work goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import fx

from exprune_fx.calibration import ranks
from exprune_fx.errors import DataError
from exprune_fx.graph.edits import tensor_at, tensor_names
from exprune_fx.plan import Plan
from exprune_fx.tuning.lines import Lines
from exprune_fx.tuning.score import Score

FORMAT = "exprune-study"
VERSION = 1
_AGAIN = "give another path, or remove the file to start again"


def model_digest(gm: fx.GraphModule) -> str:
    """SHA-256 over the graph's text and the bytes of its tensors."""
    digest = hashlib.sha256(str(gm.graph).encode())
    for name in sorted(tensor_names(gm)):
        value = tensor_at(gm, name).detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def plan_digest(plan: Plan) -> str:
    """SHA-256 over all that a plan decides."""
    return hashlib.sha256(json.dumps(plan.to_dict(), sort_keys=True).encode()).hexdigest()


@dataclass(eq=False)
class Study:
    """Evaluations by plan; in memory, and in a file where one is given.

    The file has one JSON object a line: first what it is about, then one evaluation each. What a killed process left
    unfinished at its end is passed over.

    Attributes:
        path: of the file, or None.
        model: digest of the model that is evaluated.
    """

    path: Path | None
    model: str
    _scores: dict[str, Score] = field(default_factory=dict)
    _lines: Lines | None = None

    def __post_init__(self) -> None:
        """Reads the file, or starts it.

        Raises:
            DataError: the file is no study, of another version, of another model, or cannot be written.
        """
        if self.path is None or ranks.index() > 0:  # under torchrun the first process keeps the file
            return
        self._lines = Lines(self.path, "study", _AGAIN)
        if not self._lines.found:
            self._lines.add({"format": FORMAT, "version": VERSION, "model": self.model})
            return
        self._check(self._lines.found[0] or {})
        for entry in self._lines.found[1:]:
            if entry is not None and {"plan", "score", "each"} <= entry.keys():
                self._scores[str(entry["plan"])] = Score(float(entry["score"]), tuple(entry["each"]))

    def __len__(self) -> int:
        """How many evaluations there are."""
        return len(self._scores)

    def score(self, key: str, evaluate: Callable[[], Score]) -> Score:
        """The score of this key: the one on file, or what `evaluate` says, which is then written down."""
        known = ranks.from_first(self._scores.get(key))
        if known is None:
            known = evaluate()
            if self._lines is not None:
                self._lines.add({"plan": key, "score": known.value, "each": list(known.each)})
        self._scores[key] = known
        return known

    def _check(self, head: dict[str, Any]) -> None:
        at = f"{os.fspath(self.path or '')!r}"
        if head.get("format") != FORMAT or not {"version", "model"} <= head.keys():
            raise DataError(f"{at} is not a study of exprune_fx", hint=_AGAIN)
        if head["version"] != VERSION:
            raise DataError(f"study {at} has version {head['version']!r}, this library reads {VERSION}", hint=_AGAIN)
        if head["model"] != self.model:
            raise DataError(f"study {at} is of another model, or of other weights", hint=_AGAIN)
