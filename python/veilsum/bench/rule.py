"""Robust rules: the median and Krum, beside NumPy's median and Flower's own rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veilsum import rules
from veilsum.aggregate import Aggregator
from veilsum.bench.contenders import OURS, Case, Checked, Contender, Part, Work
from veilsum.bench.mean import MeanPayload
from veilsum.bench.options import BenchOptions
from veilsum.bench.peers import flower, medians
from veilsum.model import ModelLayout

SITES = 16
VALUES = 1 << 21
_SLACK = 1e-3


class RulePayload(MeanPayload):
    """Updates of one tensor that are not multiples of each other, each of weight 1."""

    @classmethod
    def drawn(cls, size: int, sites: int) -> RulePayload:
        """Normal values."""
        values = np.random.default_rng(2)
        rows = [values.standard_normal(size, dtype=np.float32) for _ in range(sites)]
        return cls([{"w": row} for row in rows], [1] * sites)

    def ready(self, form: str) -> None:
        """As the mean's, with the rules' own references."""
        _ = self.median, self.krum
        if form == "npy":
            _ = self.npy

    @property
    def byzantine(self) -> int:
        """How many updates Krum is to survive: a quarter of them."""
        return byzantine_of(len(self.updates))

    @cached_property
    def median(self) -> NDArray[np.float64]:
        """In float64."""
        middle: NDArray[np.float64] = np.median(
            np.stack([update["w"] for update in self.updates]).astype(np.float64), axis=0
        )
        return middle

    @cached_property
    def krum(self) -> int:
        """Whose update Krum takes, by distances in float64."""
        rows = [update["w"].astype(np.float64) for update in self.updates]
        distances = np.array([[np.square(one - other).sum() for other in rows] for one in rows])
        near = np.sort(distances, axis=1)[:, 1 : len(rows) - self.byzantine - 1]
        return int(near.sum(axis=1).argmin())

    def check_median(self, result: Mapping[str, Any]) -> Checked:
        """Selected values, or the mean of two, rounded once."""
        if result["w"].shape != self.median.shape:
            return Checked(float("inf"), 1.0)
        unit = np.abs(self.median) * 2.0**-24 + np.finfo(np.float32).smallest_subnormal
        off = np.abs(result["w"].astype(np.float64) - self.median) / unit
        return Checked(float(off.max()), 1.0 + _SLACK)

    def check_krum(self, result: Mapping[str, Any]) -> Checked:
        """One of the updates, to the bit."""
        chosen = self.updates[self.krum]["w"]
        return Checked(float(np.count_nonzero(result["w"] != chosen)), 0.0, "wrong values")


def byzantine_of(sites: int) -> int:
    """A quarter of the sites, less if Krum could not be taken."""
    return max(0, min(sites // 4, (sites - 3) // 2))


def cases(options: BenchOptions) -> list[Case]:
    """The two rules."""
    size, sites = max(4096, round(VALUES * options.scale)), options.sites or SITES
    what = f"of {sites} x {size / 1e6:.3g} M values"
    return [
        _case(f"median {what}", size, sites, "median", (*medians.MEDIANS, *flower.MEDIANS)),
        _case(f"Krum {what}, f = {byzantine_of(sites)}", size, sites, "krum", flower.KRUMS),
    ]


def _case(name: str, size: int, sites: int, rule: str, peers: tuple[Contender, ...]) -> Case:
    return Case(
        "rule",
        name,
        (Contender(OURS, partial(_ours, rule), threads=True),),
        peers,
        partial(RulePayload.drawn, size, sites),
        update_bytes=4 * size,
        payload_bytes=4 * size * sites,
        parts={"": Part(4 * size * sites, size * sites)},
    )


def _ours(rule: str, payload: RulePayload, threads: int) -> Work:
    layout = ModelLayout.from_arrays(payload.updates[0])
    chosen: rules.Rule = rules.CoordinateMedian()
    check: Callable[[Mapping[str, Any]], Checked] = payload.check_median
    if rule == "krum":
        chosen, check = rules.Krum(byzantine=payload.byzantine), payload.check_krum

    def call() -> Mapping[str, Any]:
        aggregator = Aggregator(layout, rule=chosen, threads=threads)
        for number, update in enumerate(payload.updates):
            aggregator.add(update, weight=1, site=f"site-{number:04}", copy=False)
        return aggregator.finish().arrays

    return Work(call, check)
