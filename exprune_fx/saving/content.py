"""What a file of ``save`` holds, and how it is written and read."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from torch import Tensor

from exprune_fx.errors import SaveError
from exprune_fx.files import written_whole
from exprune_fx.plan import Plan

FORMAT = "exprune-staged"
FORMAT_VERSION = 1
SAVE_AGAIN = "write it again with exprune_fx.save"


@dataclass(frozen=True, eq=False)
class Content:
    """All that a file holds besides its format's name and version.

    Attributes:
        plan: what was decided.
        state_dict: the tensors of the captured model under its own names, second names of shared ones among them.
        constants: the tensors that the captured graph reads and that are not in the model's state dict.
        signature: how the graph is called (``Signature.to_dict``); None where that has no text form.
        unsigned: why there is no signature, else "".
        graph: the text of the captured graph.
        lowered: whether ``transform`` was asked for fused operators and had them.
        fused: whether the saved graph was the one with fused operators, not the readable form of it.
        torch_version: of the process that wrote the file.
    """

    plan: Plan
    state_dict: dict[str, Tensor]
    constants: dict[str, Tensor]
    signature: dict[str, Any] | None
    unsigned: str
    graph: str
    lowered: bool
    fused: bool
    torch_version: str

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name."""
        return {**self.state_dict, **self.constants}

    def write(self, path: Path) -> None:
        """Writes the file; it appears whole or not at all.

        Raises:
            SaveError: nowhere to write.
        """
        data = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "torch": self.torch_version,
            "plan": self.plan.to_dict(),
            "signature": self.signature,
            "unsigned": self.unsigned,
            "graph": self.graph,
            "lowered": self.lowered,
            "fused": self.fused,
            "state_dict": self.state_dict,
            "constants": self.constants,
        }
        try:
            with written_whole(path) as (file,), _sums():
                torch.save(data, file)
        except (OSError, RuntimeError) as error:
            raise SaveError(
                f"cannot write {str(path)!r}: {_first_line(error)}", hint="give a path in a directory that exists"
            ) from error

    @classmethod
    def read(cls, path: Path) -> Content:
        """Reads what ``write`` wrote, tensors on the CPU.

        Raises:
            SaveError: the file is missing, truncated, damaged, of another version, or not one of these.
            PlanError: the plan in it is corrupt.
        """
        if not path.is_file():
            raise SaveError(f"there is no file {str(path)!r}", hint="check the path")
        try:
            _check_sums(path)
            data = torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, OSError, EOFError, ValueError, KeyError, BadZipFile, pickle.UnpicklingError) as error:
            raise SaveError(
                f"{str(path)!r} is truncated, damaged, or no file of exprune_fx.save: {_first_line(error)}",
                hint=SAVE_AGAIN,
            ) from error
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise SaveError(
                f"{str(path)!r} is no file of exprune_fx.save", hint="give one that save(staged, path) wrote"
            )
        if data.get("version") != FORMAT_VERSION:
            raise SaveError(
                f"{str(path)!r} has format version {data.get('version')!r}, this library reads {FORMAT_VERSION}",
                hint=f"read it with the release that wrote it, or {SAVE_AGAIN}",
            )
        plan = Plan.from_dict(data.get("plan"))
        try:
            return cls._from_dict(plan, data)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SaveError(f"{str(path)!r} is damaged: {type(error).__name__}: {error}", hint=SAVE_AGAIN) from error

    @classmethod
    def _from_dict(cls, plan: Plan, data: Mapping[str, Any]) -> Content:
        content = cls(
            plan=plan,
            state_dict=dict(data["state_dict"]),
            constants=dict(data["constants"]),
            signature=None if data["signature"] is None else dict(data["signature"]),
            unsigned=str(data["unsigned"]),
            graph=str(data["graph"]),
            lowered=bool(data["lowered"]),
            fused=bool(data["fused"]),
            torch_version=str(data["torch"]),
        )
        if not (isinstance(data["graph"], str) and isinstance(data["torch"], str)):
            raise TypeError("the graph and the release of torch are not text")
        others = [name for name, tensor in content.tensors.items() if not isinstance(tensor, Tensor)]
        if others:
            raise TypeError(f"{', '.join(map(str, others))} are not tensors")
        return content


@contextmanager
def _sums() -> Iterator[None]:
    """Checksums in the archive, also where somebody switched them off in this process."""
    wanted = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(True)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(wanted)


def _check_sums(path: Path) -> None:
    """Compares the archive's checksums, which torch.load does not."""
    with ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise BadZipFile(f"the checksum of {damaged!r} is wrong")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
