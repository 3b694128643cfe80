"""Aggregation rules, most of them robust to some updates being anything (docs/rules.md).

A rule is a frozen dataclass that Aggregator(rule=...) takes; [pre-step, ..., rule] applies it
to what pre-steps make of the updates.
"""

from veilsum.rules.averages import Mean, NormClipping, NormFilter
from veilsum.rules.base import Outcome, PreStep, Rows, Rule
from veilsum.rules.choice import Chain, choose_rule, named_rule
from veilsum.rules.combinations import CenteredClipping, GeometricMedian
from veilsum.rules.coordinates import CoordinateMedian, Meamed, TrimmedMean
from veilsum.rules.presteps import Bucketing, NearestNeighborMixing
from veilsum.rules.selections import Bulyan, Krum, MultiKrum

__all__ = [
    "Bucketing",
    "Bulyan",
    "CenteredClipping",
    "Chain",
    "CoordinateMedian",
    "GeometricMedian",
    "Krum",
    "Meamed",
    "Mean",
    "MultiKrum",
    "NearestNeighborMixing",
    "NormClipping",
    "NormFilter",
    "Outcome",
    "PreStep",
    "Rows",
    "Rule",
    "TrimmedMean",
    "choose_rule",
    "named_rule",
]
