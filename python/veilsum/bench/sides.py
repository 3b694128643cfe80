"""Contenders side by side: each in a process of its own, called in turn.

All are forked from one process that holds the payload, so that it lies in memory once. A
contender's first call is for its result and its memory, by the kernel's accounting; the result is
checked, and then it is timed when its turn comes. The others wait in a read meanwhile.
"""

from __future__ import annotations

import gc
import multiprocessing
import signal
import statistics
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from veilsum.bench import machine
from veilsum.bench.contenders import Case, Checked, Contender, Work
from veilsum.bench.timing import Timer, elapsed, paired, spread
from veilsum.errors import VeilsumError

_FORK = multiprocessing.get_context("fork")
FEWEST_ROUNDS, MOST_ROUNDS = 3, 9


class WrongResult(VeilsumError):  # noqa: N818  what was found
    """Our own result is not what the float64 reference says."""


class ContenderFailed(VeilsumError):  # noqa: N818  the outcome of its work
    """A contender's process ended, or what it called raised."""


@dataclass(frozen=True, slots=True)
class First:
    """What the first call told.

    Attributes:
        seconds: of a second call, which warms up; by part.
        peak: most bytes ever resident in the process.
        extra: of them, what was not there before the call: all but interpreter, libraries and
            payload.
    """

    checked: Checked
    seconds: Mapping[str, float]
    peak: int
    extra: int


@dataclass(frozen=True, slots=True)
class Measured:
    """What a contender's rounds told.

    Attributes:
        seconds: part -> the time of each round.
        copies: the time of the machine's copy in the same rounds.
        times: part -> name of one of ours -> how many times faster that was.
    """

    contender: Contender
    first: First
    seconds: Mapping[str, Sequence[float]]
    copies: Sequence[float]
    times: Mapping[str, Mapping[str, float]]

    def median(self, part: str) -> float:
        return statistics.median(self.seconds[part])

    def spread(self, part: str) -> float | None:
        return spread(self.seconds[part])


class Side:
    """A contender's process. Use `with`."""

    def __init__(self, contender: Contender, payload: Any, threads: int) -> None:
        self.contender = contender
        self._here, there = _FORK.Pipe()
        arguments = (there, self._here, contender, payload, threads)
        self._process = _FORK.Process(target=_serve, args=arguments, daemon=True)
        self._there = there

    def __enter__(self) -> Side:
        self._process.start()
        self._there.close()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.kill()
        self._process.join()
        self._here.close()

    def first(self) -> First:
        """Prepares, calls for the first time and checks.

        Raises:
            ContenderFailed: anything went wrong in its process.
        """
        return self._ask("first")  # type: ignore[no-any-return]

    def run(self) -> Mapping[str, float]:
        """Seconds of one more call, by part."""
        return self._ask("run")  # type: ignore[no-any-return]

    def _ask(self, what: str) -> Any:
        self._here.send(what)
        try:
            kind, answer = self._here.recv()
        except EOFError as error:
            self._process.join()
            code = self._process.exitcode
            raise ContenderFailed(f"its process ended with {code}") from error
        if kind == "failed":
            raise ContenderFailed(answer)
        return answer


def _serve(
    there: Connection, here: Connection, contender: Contender, payload: Any, threads: int
) -> None:
    """The contender's process: answers until the other end is closed."""
    here.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that was forked from decides
    timer = clock_of(threads)
    work: Work | None = None
    while True:
        try:
            what = there.recv()
        except EOFError:
            return
        try:
            if what == "first":
                work = contender.prepare(payload, threads)
                answer: Any = _first(work, timer)
            else:
                assert work is not None
                answer = _timed(work, timer)
            there.send(("done", answer))
        except Exception as error:  # noqa: BLE001  a boundary: foreign code, its error is a row
            traceback.print_exc()
            there.send(("failed", f"{type(error).__name__}: {error}"))


def clock_of(threads: int) -> Timer:
    """Processor time for one thread: its neighbours on a busy machine do not count."""
    return time.process_time if threads == 1 else time.perf_counter


def _first(work: Work, timer: Timer) -> First:
    given = work.fresh()
    gc.collect()
    machine.forget_peak()
    before = machine.memory("VmRSS")
    result = work.call(*given)
    peak = machine.memory("VmHWM")
    checked = work.check(result)
    del result, given
    machine.keep_pages()
    return First(checked, _timed(work, timer), peak, peak - before)


def _timed(work: Work, timer: Timer) -> Mapping[str, float]:
    given = work.fresh()
    began = timer()
    result = work.call(*given)
    taken = elapsed(began, timer)
    return {"": taken} if work.parts is None else work.parts(result)


# --- a case ------------------------------------------------------------------------------


@contextmanager
def _ready(contender: Contender, payload: Any, threads: int) -> Iterator[tuple[Side, First]]:
    with Side(contender, payload, threads) as side:
        yield side, side.first()


class Pairing:
    """Ours, alive through a case, and each peer in its turn against them. Use `with`."""

    def __init__(self, case: Case, payload: Any, *, threads: int, budget_s: float) -> None:
        self._case = case
        self._payload = payload
        self._threads = threads
        self._budget_s = budget_s
        self._copy = machine.probes()["copy"]
        self._ours = [Side(contender, payload, threads) for contender in case.ours]
        self._firsts: list[First] = []
        self._taken: list[list[Mapping[str, float]]] = [[] for _ in case.ours]
        self._copies: list[float] = []

    def __enter__(self) -> Pairing:
        for side in self._ours:
            side.__enter__()
            first = side.first()
            self._firsts.append(first)
            require_correct(self._case, side.contender, first.checked)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for side in self._ours:
            side.__exit__()

    def against(self, peer: Contender) -> Measured:
        """Rounds of copy, ours and the peer.

        Raises:
            ContenderFailed: the peer could not do it.
        """
        with _ready(peer, self._payload, self._threads) as (side, first):
            mine: list[Mapping[str, float]] = []
            since = len(self._copies)
            for _ in range(self._rounds(first)):
                self._round()
                mine.append(side.run())
        times = {
            part: {
                ours.contender.name: paired(_of(mine, part), _of(taken[since:], part))
                for ours, taken in zip(self._ours, self._taken, strict=True)
            }
            for part in self._case.parts
        }
        seconds = {part: _of(mine, part) for part in self._case.parts}
        return Measured(peer, first, seconds, self._copies[since:], times)

    def ours(self) -> list[Measured]:
        """What all rounds so far told of ours; some are made if there were none."""
        if not self._copies:
            for _ in range(self._rounds()):
                self._round()
        return [
            Measured(
                side.contender,
                first,
                {part: _of(taken, part) for part in self._case.parts},
                self._copies,
                {part: self._among_ours(taken, part) for part in self._case.parts},
            )
            for side, first, taken in zip(self._ours, self._firsts, self._taken, strict=True)
        ]

    def _among_ours(self, taken: list[Mapping[str, float]], part: str) -> dict[str, float]:
        return {
            other.contender.name: paired(_of(taken, part), _of(theirs, part))
            for other, theirs in zip(self._ours, self._taken, strict=True)
        }

    def _round(self) -> None:
        began = time.process_time()
        self._copy()
        self._copies.append(elapsed(began, time.process_time))
        for side, taken in zip(self._ours, self._taken, strict=True):
            taken.append(side.run())

    def _rounds(self, *peers: First) -> int:
        cost = sum(sum(first.seconds.values()) for first in [*self._firsts, *peers])
        wanted = int(self._budget_s / cost) if cost else MOST_ROUNDS
        return min(max(wanted, FEWEST_ROUNDS), MOST_ROUNDS)


def require_correct(case: Case, contender: Contender, checked: Checked) -> None:
    """Raises:
    WrongResult: what one of ours computed is not right; nothing of it is to be reported.
    """
    if not checked.correct:
        raise WrongResult(
            f"{contender.name} is off in {case.name}: {checked.error:.3g} {checked.unit}, "
            f"at most {checked.allowed:.3g} are right",
            hint="run veilsum doctor, and report this",
        )


def _of(taken: Sequence[Mapping[str, float]], part: str) -> list[float]:
    return [one[part] for one in taken]
