"""What was removed, as plain data: it replays on a fresh model, so that a shrunk checkpoint can be loaded."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from exprune_fx.errors import PlanError
from exprune_fx.files import written_whole
from exprune_fx.static.cuts import TensorCut
from exprune_fx.static.module import AttributeChange, Bindings

FORMAT = "exprune-channel-plan"
FORMAT_VERSION = 1
_AGAIN = "make the plan again with exprune_fx.shrink"


@dataclass(frozen=True)
class GroupPlan:
    """What went of one symmetry group.

    Attributes:
        name: of the group, in the graph of its round.
        size: members before, for each index.
        removed: for each index, the members that went, ascending.
        tensors: names of the parameters and buffers that were cut.
    """

    name: str
    size: int
    removed: tuple[tuple[int, ...], ...]
    tensors: tuple[str, ...]

    @property
    def kept(self) -> tuple[tuple[int, ...], ...]:
        """For each index, the members that stayed, ascending."""
        return tuple(tuple(i for i in range(self.size) if i not in set(gone)) for gone in self.removed)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        removed = [list(gone) for gone in self.removed]
        return {"name": self.name, "size": self.size, "removed": removed, "tensors": list(self.tensors)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> GroupPlan:
        """The inverse of ``to_dict``."""
        removed = tuple(tuple(int(i) for i in gone) for gone in data["removed"])
        return cls(str(data["name"]), int(data["size"]), removed, tuple(str(name) for name in data["tensors"]))


@dataclass(frozen=True)
class Round:
    """One removal: everything that changed in the model, but for the values of what stayed.

    Attributes:
        groups: what went of each group.
        tensors: how each parameter and buffer is cut, under the first of its names.
        biases: biases that were added, with their lengths.
        attributes: what else changed in the modules.
    """

    groups: tuple[GroupPlan, ...]
    tensors: tuple[TensorCut, ...]
    biases: tuple[tuple[str, int], ...] = ()
    attributes: tuple[AttributeChange, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "groups": [group.to_dict() for group in self.groups],
            "tensors": [tensor.to_dict() for tensor in self.tensors],
            "biases": [[name, length] for name, length in self.biases],
            "attributes": [change.to_dict() for change in self.attributes],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Round:
        """The inverse of ``to_dict``."""
        return cls(
            tuple(GroupPlan.from_dict(each) for each in data["groups"]),
            tuple(TensorCut.from_dict(each) for each in data["tensors"]),
            tuple((str(name), int(length)) for name, length in data["biases"]),
            tuple(AttributeChange.from_dict(each) for each in data["attributes"]),
        )


@dataclass(frozen=True)
class ChannelPlan:
    """All removals from one model, in order.

    Attributes:
        rounds: one for one-shot shrinking, one per step where it was iterative.
        source: what was shrunk; only the plan of a module says what its attributes become, and replays.
    """

    rounds: tuple[Round, ...] = ()
    source: Literal["module", "graph"] = "module"

    def apply(self, model: nn.Module) -> None:
        """Gives a fresh model the shrunk shapes, in place, so that the shrunk model's ``state_dict`` loads into it.

        What stays keeps the model's own values; constants are not folded into biases, and added biases are zero: load
        the checkpoint afterwards. The model must be as it was before shrinking. Optimizers made before hold the old
        parameters.

        Raises:
            PlanError: the plan is of another model, or of a graph; the model is untouched.
        """
        if self.source != "module":
            raise PlanError(
                "this plan is of a graph: it does not say what the attributes of modules become",
                hint="shrink the module for a plan that replays, or save the smaller graph itself",
            )
        bindings = Bindings(model)
        for each in self.rounds:
            for cut in each.tensors:
                bindings.bind(cut.name, cut(bindings.tensor(cut.name)))
            for name, length in each.biases:
                like = bindings.tensor(name.removesuffix("bias") + "weight")
                bindings.add(name, torch.zeros(length, dtype=like.dtype, device=like.device))
            for change in each.attributes:
                bindings.set_attribute(change)
        bindings.commit()

    def to_dict(self) -> dict[str, Any]:
        """Plain data, with the format's name and version."""
        rounds = [each.to_dict() for each in self.rounds]
        return {"format": FORMAT, "version": FORMAT_VERSION, "source": self.source, "rounds": rounds}

    @classmethod
    def from_dict(cls, data: Any) -> ChannelPlan:
        """The inverse of ``to_dict``.

        Raises:
            PlanError: not a channel plan, one of another version, or a corrupt one.
        """
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise PlanError("this is not a channel plan of exprune_fx", hint="give a file written by ChannelPlan.save")
        if data.get("version") != FORMAT_VERSION:
            raise PlanError(
                f"this channel plan has format version {data.get('version')!r}, this library reads {FORMAT_VERSION}",
                hint=_AGAIN,
            )
        try:
            if data["source"] not in ("module", "graph"):
                raise PlanError(f"this channel plan is of a {data['source']!r}", hint=_AGAIN)
            return cls(tuple(Round.from_dict(each) for each in data["rounds"]), data["source"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PlanError(f"this channel plan is corrupt: {type(error).__name__}: {error}", hint=_AGAIN) from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes JSON; the file appears whole or not at all."""
        text = json.dumps(self.to_dict())
        with written_whole(Path(path)) as (file,):
            file.write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ChannelPlan:
        """Reads what ``save`` wrote.

        Raises:
            PlanError: the file is missing, is not JSON, or is not a channel plan that this library reads.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise PlanError(f"cannot read the channel plan {path}: {error}", hint=_AGAIN) from error
        return cls.from_dict(data)
