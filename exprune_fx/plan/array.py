"""Arrays of numbers as plain data."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from exprune_fx.errors import PlanError

AGAIN = "make the plan again with exprune_fx.calibrate"


@dataclass(frozen=True)
class Array:
    """A float32 array as plain data: shape and base64 of its little-endian bytes."""

    shape: tuple[int, ...]
    data: str

    @classmethod
    def of(cls, value: torch.Tensor) -> Array:
        """Packs a tensor, rounding to float32."""
        little = value.detach().cpu().to(torch.float32).contiguous().numpy().astype("<f4")
        return cls(tuple(value.shape), base64.b64encode(little.tobytes()).decode("ascii"))

    def tensor(self) -> torch.Tensor:
        """The float32 tensor.

        Raises:
            PlanError: the bytes are not those of an array of this shape.
        """
        try:
            raw = np.frombuffer(base64.b64decode(self.data, validate=True), dtype="<f4")
            return torch.from_numpy(raw.astype(np.float32).reshape(self.shape))
        except (ValueError, binascii.Error) as error:
            raise PlanError(f"an array of shape {list(self.shape)} does not decode: {error}", hint=AGAIN) from error

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"shape": list(self.shape), "float32": self.data}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Array:
        """The inverse of ``to_dict``; the bytes are checked."""
        array = cls(tuple(int(size) for size in data["shape"]), str(data["float32"]))
        if any(size < 0 for size in array.shape):
            raise PlanError(f"an array has shape {list(array.shape)}", hint=AGAIN)
        array.tensor()
        return array
