"""The one error hierarchy: every message names the node or module, the shapes, the pass, and what to do."""

from __future__ import annotations


class ExpruneError(Exception):
    """Base of all errors that this library raises on purpose.

    Args:
        what: what is wrong, in one sentence that names the node or module and its shapes.
        hint: what the caller can do about it.
    """

    def __init__(self, what: str, *, hint: str = "") -> None:
        super().__init__(f"{what}\n  what to do: {hint}" if hint else what)
        self.what = what
        self.hint = hint


class CaptureError(ExpruneError):
    """The model, or its example inputs, cannot be brought to the dialect."""


class VerifyError(ExpruneError):
    """A graph breaks an invariant; the message names the check, the node and the pass before which it held."""


class SymmetryError(ExpruneError):
    """An element does not belong to the group, or a graph is not the one that was analysed."""


class PassError(ExpruneError):
    """A pass could not do its work; the graph that it was given is unchanged."""


class GuardError(ExpruneError, ValueError):
    """A guard's or a stage's numbers make no sense (alpha outside (0, 1), stages not increasing)."""


class CalibrationError(ExpruneError):
    """The calibration data are unusable: empty, not finite, or not what the model takes."""


class PlanError(ExpruneError):
    """A plan is corrupt, of another version, or was made for another model."""


class DataError(ExpruneError):
    """A data set is missing, or a file of it is not what its checksum says."""


class KernelError(ExpruneError, RuntimeError):
    """A native operator cannot be built or loaded, or was called with arguments that it does not take."""


class ShrinkError(ExpruneError):
    """A model cannot be shrunk as asked; it is left as it was, bit for bit."""


class SaveError(ExpruneError):
    """A staged graph cannot be saved as it is, or a file is not what ``save`` wrote, or was made of another model."""


class ExportError(ExpruneError):
    """A graph cannot be written in the form that was asked for, or what that needs is not there."""
