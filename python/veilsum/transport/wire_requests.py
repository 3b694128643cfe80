"""Protobuf to our own dataclasses and back: what operators ask for beside runs themselves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from veilsum.errors import DecodeError
from veilsum.proto.v1 import operator_pb2 as pb
from veilsum.transport.wire import count, dump, finite, parse, printable, text

_MOST_EVENTS = 1 << 62
_MOST_RUNS = 1 << 31
_LONGEST_S = 1e10


@dataclass(frozen=True, slots=True)
class Pruning:
    """Which runs that are over to forget: those that meet one of the conditions.

    Attributes:
        older_than_s: ended longer ago than so many seconds; None: whenever.
        keep: not among so many that ended last; None: however many.
        proofs: also receipts, evidence and links of results, which prove things to others.
        dry_run: only say which.
    """

    older_than_s: float | None = None
    keep: int | None = None
    proofs: bool = False
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class PrunedRun:
    """A run that was forgotten, or would be.

    Attributes:
        state: as it had ended.
        size_bytes: of its files.
    """

    run_id: str
    state: str
    size_bytes: int


def encode_watch(run_id: str, after: int) -> bytes:
    """See decode_watch."""
    return dump(pb.WatchRunRequest(run_id=run_id, after=after))


def decode_watch(data: bytes) -> tuple[str, int]:
    """(run, number of the last event that is known already).

    Raises:
        DecodeError: a field is missing or out of bounds.
    """
    message = parse(pb.WatchRunRequest, data)
    after = count(message.after, "after", largest=_MOST_EVENTS)
    return printable(message.run_id, "run_id"), after


def encode_pruning(pruning: Pruning) -> bytes:
    """See decode_pruning."""
    return dump(
        pb.PruneRunsRequest(
            older_than_s=pruning.older_than_s,
            keep=pruning.keep,
            proofs=pruning.proofs,
            dry_run=pruning.dry_run,
        )
    )


def decode_pruning(data: bytes) -> Pruning:
    """Which runs to forget.

    Raises:
        DecodeError: a field is out of bounds, or no condition is set.
    """
    message = parse(pb.PruneRunsRequest, data)
    older = finite(message.older_than_s, "older_than_s")
    if not 0 <= older <= _LONGEST_S:
        raise DecodeError(f"older_than_s must be 0 to {_LONGEST_S:g}, got {older}")
    keep = count(message.keep, "keep", largest=_MOST_RUNS)
    pruning = Pruning(
        older if message.HasField("older_than_s") else None,
        keep if message.HasField("keep") else None,
        message.proofs,
        message.dry_run,
    )
    if pruning.older_than_s is None and pruning.keep is None:
        raise DecodeError(
            "nothing says which runs to forget", hint="set older_than_s, keep or both"
        )
    return pruning


def encode_pruned(runs: Iterable[PrunedRun]) -> bytes:
    """See decode_pruned."""
    listed = [
        pb.PrunedRun(run_id=run.run_id, state=run.state, bytes=run.size_bytes) for run in runs
    ]
    return dump(pb.PruneRunsResponse(runs=listed))


def decode_pruned(data: bytes) -> tuple[PrunedRun, ...]:
    """What was forgotten.

    Raises:
        DecodeError: a field is missing or out of bounds.
    """
    return tuple(
        PrunedRun(printable(run.run_id, "run_id"), text(run.state, "state"), run.bytes)
        for run in parse(pb.PruneRunsResponse, data).runs
    )
