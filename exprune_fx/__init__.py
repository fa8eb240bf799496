"""Find which numbers in a PyTorch model are interchangeable, and use that to compute less.

`capture` a model as a graph, `calibrate` a plan on data, `transform` the graph by the plan, `measure` what it did,
`explain` what was found, what was staged, and what was left dense and why.
"""

from importlib.metadata import version as _version

from exprune_fx.calibration import calibrate as calibrate
from exprune_fx.calibration import calibrate_heads as calibrate_heads
from exprune_fx.deploy import Package as Package
from exprune_fx.deploy import export_onnx as export_onnx
from exprune_fx.deploy import export_package as export_package
from exprune_fx.deploy import export_program as export_program
from exprune_fx.errors import CalibrationError as CalibrationError
from exprune_fx.errors import CaptureError as CaptureError
from exprune_fx.errors import DataError as DataError
from exprune_fx.errors import ExportError as ExportError
from exprune_fx.errors import ExpruneError as ExpruneError
from exprune_fx.errors import GuardError as GuardError
from exprune_fx.errors import KernelError as KernelError
from exprune_fx.errors import PassError as PassError
from exprune_fx.errors import PlanError as PlanError
from exprune_fx.errors import SaveError as SaveError
from exprune_fx.errors import ShrinkError as ShrinkError
from exprune_fx.errors import SymmetryError as SymmetryError
from exprune_fx.errors import VerifyError as VerifyError
from exprune_fx.graph import capture as capture
from exprune_fx.graph import python_text as python_text
from exprune_fx.graph import verify as verify
from exprune_fx.guards import Bound as Bound
from exprune_fx.guards import Calibrated as Calibrated
from exprune_fx.guards import Dominance as Dominance
from exprune_fx.guards import FinitePopulation as FinitePopulation
from exprune_fx.guards import Guard as Guard
from exprune_fx.guards import StatsTest as StatsTest
from exprune_fx.guards import Threshold as Threshold
from exprune_fx.measurement import Measurement as Measurement
from exprune_fx.measurement import SiteMeasurement as SiteMeasurement
from exprune_fx.measurement import measure as measure
from exprune_fx.pipeline import normalise as normalise
from exprune_fx.pipeline import transform as transform
from exprune_fx.plan import HeadPlan as HeadPlan
from exprune_fx.plan import Plan as Plan
from exprune_fx.plan import SitePlan as SitePlan
from exprune_fx.plan import SiteTiming as SiteTiming
from exprune_fx.report import Explanation as Explanation
from exprune_fx.report import explain as explain
from exprune_fx.saving import load as load
from exprune_fx.saving import save as save
from exprune_fx.sites import PredictionHead as PredictionHead
from exprune_fx.sites import Site as Site
from exprune_fx.sites import find_heads as find_heads
from exprune_fx.sites import find_sites as find_sites
from exprune_fx.static import BatchNormScale as BatchNormScale
from exprune_fx.static import ChannelPlan as ChannelPlan
from exprune_fx.static import Expressiveness as Expressiveness
from exprune_fx.static import Hybrid as Hybrid
from exprune_fx.static import Magnitude as Magnitude
from exprune_fx.static import Noise as Noise
from exprune_fx.static import Random as Random
from exprune_fx.static import Taylor as Taylor
from exprune_fx.static import shrink as shrink
from exprune_fx.symmetry import SymmetryGroup as SymmetryGroup
from exprune_fx.symmetry import symmetries as symmetries
from exprune_fx.tuning import GuardSearch as GuardSearch
from exprune_fx.tuning import Optimized as Optimized
from exprune_fx.tuning import optimize as optimize
from exprune_fx.tuning import search_guards as search_guards

__version__ = _version("exprune_fx")
