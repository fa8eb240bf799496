"""One row of the benchmark: what was measured, and what follows from it."""

from __future__ import annotations

from dataclasses import dataclass

from exprune_fx.bench.columns import DENSE, OURS
from exprune_fx.bench.subject import Kind
from exprune_fx.bench.timing import Timing
from exprune_fx.bench.touched import Touched

WRONG = {"float32": 1e-2, "float16": 5e-2, "bfloat16": 1e-1}
"""The share of the outputs' norm from which a column is wrong, by dtype: far above rounding, and above the few neurons
that rounding may push over a threshold. (Inductor's matrix-product templates misread some sliced weights.)"""


@dataclass(frozen=True)
class Row:
    """One row of the benchmark; times are seconds a call.

    Attributes:
        name: of the row.
        kind: one operator, or a whole model.
        about: how the subject was made.
        dtype: of weights and activations.
        batch: examples in one call.
        threads: of torch.
        timings: by column.
        ours_inner: the inner setting under which ours was fastest, or "eager": called without torch.compile.
        ours_inner_seconds: median of ours in each of these ways.
        sites: how many of ours are "fused" (native kernels), "readable" (staged, but computed densely), or "dense".
        decisions: by site, the plan's head, and why it was chosen.
        rounds: samples of each column.
        calls: calls that one sample is the mean of.
        max_error: largest difference of any output from the dense model's in eager mode, in float32.
        error_kind: "stopping" where a guard may stop neurons that matter, else "rounding".
        kernel_error: largest difference from the readable staged form: what the fused operators alone add.
        output_scale: largest absolute dense output, for comparison.
        column_errors: of each column's outputs, as a share of their norm: dense columns against eager mode, ours
            against its readable form.
        touched: FLOPs and bytes a call, stopped and zero shares, counted on the timed inputs.
        bandwidth_ceiling_gb_per_s: of a large read on this machine.
        matmul_ceiling_gflop_per_s: of a large matrix product in this dtype; None if it was not measured.
        accuracy_dense: on held-out examples, None without.
        accuracy_ours: likewise, of the graph that was timed.
        examples: held-out examples; 0 without.
        staged_s: median seconds of the staged form where the clock left the site dense; None where ours is staged.
    """

    name: str
    kind: Kind
    about: str
    dtype: str
    batch: int
    threads: int
    timings: dict[str, Timing]
    ours_inner: str
    ours_inner_seconds: dict[str, float]
    sites: dict[str, int]
    decisions: dict[str, str]
    rounds: int
    calls: int
    max_error: float
    error_kind: str
    kernel_error: float
    output_scale: float
    column_errors: dict[str, float]
    touched: Touched
    bandwidth_ceiling_gb_per_s: float
    matmul_ceiling_gflop_per_s: float | None
    accuracy_dense: float | None = None
    accuracy_ours: float | None = None
    examples: int = 0
    staged_s: float | None = None

    @property
    def seconds(self) -> dict[str, float]:
        """Median, by column."""
        return {name: timing.median for name, timing in self.timings.items()}

    @property
    def spread(self) -> dict[str, tuple[float, float]]:
        """First and third quartile, by column."""
        return {name: timing.quartiles for name, timing in self.timings.items()}

    @property
    def wrong(self) -> tuple[str, ...]:
        """Columns whose outputs are not those of the model, or of the staged form: their times are of no use."""
        return tuple(name for name, error in self.column_errors.items() if not error <= WRONG[self.dtype])

    @property
    def best_dense(self) -> str:
        """The fastest dense column of those that compute the right thing."""
        return min((name for name in DENSE if name not in self.wrong), key=self.seconds.__getitem__)

    @property
    def ratio(self) -> float:
        """The best dense column's median over ours: above 1 ours is faster."""
        return self.seconds[self.best_dense] / self.seconds[OURS]

    @property
    def staged_ratio(self) -> float | None:
        """The ratio that ours would have had, if it had not been left dense."""
        return None if self.staged_s is None else self.seconds[self.best_dense] / self.staged_s

    @property
    def ratio_spread(self) -> tuple[float, float]:
        """First and third quartile of the ratios of each round, whose columns had the machine in the same state."""
        pairs = zip(self.timings[self.best_dense].samples, self.timings[OURS].samples, strict=True)
        return Timing(tuple(dense / ours for dense, ours in pairs)).quartiles

    @property
    def time_saved(self) -> float:
        """Share of the best dense column's time; negative where ours is slower."""
        return 1.0 - self.seconds[OURS] / self.seconds[self.best_dense]

    @property
    def time_over_flops(self) -> float | None:
        """Time saved over FLOPs saved: 1 where every FLOP that is saved shows on the clock."""
        return self.time_saved / self.touched.flops_saved if self.touched.flops_saved > 0 else None

    @property
    def gb_per_s(self) -> float:
        """Bytes that ours touches, 1e9 a second."""
        return self.touched.bytes / self.seconds[OURS] / 1e9

    @property
    def gflop_per_s(self) -> float:
        """FLOPs that ours computes, 1e9 a second."""
        return self.touched.flops / self.seconds[OURS] / 1e9

    @property
    def dense_gb_per_s(self) -> float:
        """Bytes that the best dense column touches, 1e9 a second."""
        return self.touched.bytes_dense / self.seconds[self.best_dense] / 1e9

    @property
    def dense_gflop_per_s(self) -> float:
        """FLOPs that the best dense column computes, 1e9 a second."""
        return self.touched.flops_dense / self.seconds[self.best_dense] / 1e9
