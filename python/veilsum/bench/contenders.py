"""What is measured: a case is one payload, and contenders that do the same work on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

OURS = "veilsum"


@dataclass(frozen=True, slots=True)
class Checked:
    """How far a result is from the float64 reference.

    Attributes:
        error: the largest, in `unit`.
        allowed: what is right; more is a wrong result.
        unit: "roundings" (reference.py), or what the case says.
    """

    error: float
    allowed: float
    unit: str = "roundings"

    @property
    def correct(self) -> bool:
        """NaN is not."""
        return self.error <= self.allowed


@dataclass(frozen=True, slots=True)
class Work:
    """One contender's work on one payload, ready to be timed.

    Attributes:
        call: what is timed.
        check: holds a result against the reference.
        fresh: makes the arguments of each call, outside the time.
        parts: seconds by part, for work that times itself because parts of it are others'.
        peak: bytes of memory at most, for work in other processes.
    """

    call: Callable[..., Any]
    check: Callable[[Any], Checked]
    fresh: Callable[[], tuple[Any, ...]] = tuple
    parts: Callable[[Any], Mapping[str, float]] | None = None


@dataclass(frozen=True, slots=True)
class Contender:
    """Somebody who can do a case's work.

    Attributes:
        name: shown; of the function or class that is called.
        prepare: called in the contender's own process with the payload and the number of
            threads.
        host: the distribution that is needed (installed.py), or none.
        form: of the payload: "arrays", or "npy", which is what Flower sends.
        memory: bytes that the work takes beside the payload, at most, in units of one update.
        threads: whether more threads can make a difference.
    """

    name: str
    prepare: Callable[[Any, int], Work]
    host: str | None = None
    form: str = "arrays"
    memory: float = 4.0
    threads: bool = False


@dataclass(frozen=True, slots=True)
class Part:
    """What a part of the work consumes.

    Attributes:
        size: bytes that are read or written at least.
        coordinates: values, summed over updates.
    """

    size: int
    coordinates: int


@dataclass(frozen=True, slots=True)
class Case:
    """One payload and who works on it.

    Attributes:
        section, name: where its figures are shown.
        ours: one or more of our own; ratios are to each of them.
        peers: others.
        payload: makes it; called in the process that all contenders are forked from.
        update_bytes: of one update.
        payload_bytes: of all of them, in the form "arrays".
        parts: name -> what it consumes; "" alone is the work as a whole.
    """

    section: str
    name: str
    ours: tuple[Contender, ...]
    peers: tuple[Contender, ...]
    payload: Callable[[], Any]
    update_bytes: int
    payload_bytes: int
    parts: Mapping[str, Part] = field(default_factory=dict)
