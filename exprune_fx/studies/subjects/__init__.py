"""Models with real data: what is measured, on what, and by which metric."""

from exprune_fx.studies.subjects.metrics import Accuracy as Accuracy
from exprune_fx.studies.subjects.metrics import Metric as Metric
from exprune_fx.studies.subjects.metrics import RocAuc as RocAuc
from exprune_fx.studies.subjects.metrics import TokenAccuracy as TokenAccuracy
from exprune_fx.studies.subjects.subject import Judge as Judge
from exprune_fx.studies.subjects.subject import Subject as Subject
