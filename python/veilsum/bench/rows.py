"""A figure as it is reported: one row of the tables, one object of the JSON."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from veilsum.bench.contenders import Case, Contender
from veilsum.bench.installed import HOSTS
from veilsum.bench.machine import PROBE_BYTES
from veilsum.bench.sides import Measured


@dataclass(frozen=True, slots=True)
class Row:
    """What is known of one contender in one case; None where it was not measured.

    Attributes:
        section, case, part: what was done.
        contender, host, version: by whom.
        ours: whether it is veilsum.
        threads: with how many.
        reason: why there is nothing more; None if it was measured.
        seconds: median of the rounds.
        clock: "processor" (one thread) or "wall".
        spread: distance between the quartiles, as a share of the median; None of 3 rounds.
        gb_per_s, gcoord_per_s: 10^9 bytes read or written at least, and values consumed, a second.
        of_copy: those bytes per second as a share of what one core copies, in the same rounds.
        peak_bytes, extra_bytes: most memory of its process (VmHWM), and of that what was not there
            before the call.
        error, allowed, unit: how far it is from the float64 reference, and how far is right.
        times: name of one of ours -> how many times faster that was, median over rounds.
        rounds: how many.
    """

    section: str
    case: str
    part: str
    contender: str
    ours: bool
    threads: int
    host: str | None = None
    version: str | None = None
    reason: str | None = None
    seconds: float | None = None
    clock: str | None = None
    spread: float | None = None
    gb_per_s: float | None = None
    gcoord_per_s: float | None = None
    of_copy: float | None = None
    peak_bytes: int | None = None
    extra_bytes: int | None = None
    error: float | None = None
    allowed: float | None = None
    unit: str | None = None
    times: Mapping[str, float] = field(default_factory=dict)
    rounds: int = 0

    @property
    def correct(self) -> bool | None:
        """Whether the result was right; None if it was not looked at."""
        if self.error is None or self.allowed is None:
            return None
        return self.error <= self.allowed

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Row:
        """What to_json() gave."""
        given = {name: value for name, value in found.items() if name != "correct"}
        if given["error"] is None and given["allowed"] is not None:
            given["error"] = float("inf")
        return cls(**given)

    def to_json(self) -> dict[str, Any]:
        """With `correct`; an infinite error is None."""
        found = {**asdict(self), "correct": self.correct}
        if self.error is not None and not self.error < float("inf"):
            found["error"] = None
        return found


def left_out(case: Case, contender: Contender, threads: int, reason: str, *, ours: bool) -> Row:
    """A row that says why there are no figures."""
    return Row(
        case.section,
        case.name,
        "",
        contender.name,
        ours=ours,
        threads=threads,
        host=contender.host,
        version=version_of(contender),
        reason=reason,
    )


def measured(case: Case, found: Measured, threads: int, *, ours: bool) -> list[Row]:
    """A row for each part of the work."""
    return [_row(case, found, part, threads, ours=ours) for part in case.parts]


def _row(case: Case, found: Measured, part: str, threads: int, *, ours: bool) -> Row:
    seconds, consumed = found.median(part), case.parts[part]
    share = statistics.median(
        copy / own for copy, own in zip(found.copies, found.seconds[part], strict=True)
    )
    return Row(
        case.section,
        case.name,
        part,
        found.contender.name,
        ours=ours,
        threads=threads,
        host=found.contender.host,
        version=version_of(found.contender),
        seconds=seconds,
        clock="processor" if threads == 1 else "wall",
        spread=found.spread(part),
        gb_per_s=consumed.size / seconds / 1e9,
        gcoord_per_s=consumed.coordinates / seconds / 1e9,
        of_copy=consumed.size / PROBE_BYTES * share,
        peak_bytes=found.first.peak,
        extra_bytes=found.first.extra,
        error=found.first.checked.error,
        allowed=found.first.checked.allowed,
        unit=found.first.checked.unit,
        times=found.times[part],
        rounds=len(found.copies),
    )


def version_of(contender: Contender) -> str | None:
    """Of its distribution, if it has one."""
    return HOSTS[contender.host].version if contender.host in HOSTS else None
