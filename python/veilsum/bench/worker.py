"""The process that measures: one section with one number of threads.

    python -m veilsum.bench.worker < job.json

Prints a line of JSON for each row as soon as it is there. It makes the payloads and forks the
contenders; so it stays without threads of its own, and how many everybody may use is in its
environment before any library is loaded (run.py).
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

from veilsum.bench import codec, machine, masked, mean, rule
from veilsum.bench.contenders import Case, Contender
from veilsum.bench.installed import HOSTS
from veilsum.bench.options import BenchOptions
from veilsum.bench.rows import Row, left_out, measured
from veilsum.bench.sides import ContenderFailed, Pairing
from veilsum.errors import VeilsumError

# What may be taken of the memory that the kernel says is there: others go on working.
MEMORY_SHARE = 0.85
# No contender makes more copies of all updates than this.
_MOST_COPIES = 2.5

CASES: dict[str, Callable[[BenchOptions], list[Case]]] = {
    "mean": mean.cases,
    "codec": codec.cases,
    "rule": rule.cases,
    "masked": masked.cases,
}


def section_rows(section: str, options: BenchOptions, threads: int) -> Iterator[Row]:
    """Every row of a section, as soon as it is there.

    Raises:
        WrongResult: one of ours is off.
    """
    if section == "transport":  # is made of servers, which are processes already
        # Only here: next to OpenFL there is no gRPC that is new enough for it (docs/embedding.md).
        from veilsum.bench import transport

        yield from transport.rows(options, threads)
        return
    for case in CASES[section](options):
        yield from case_rows(case, options, threads)
        gc.collect()
        machine.give_back_pages()


def case_rows(case: Case, options: BenchOptions, threads: int) -> Iterator[Row]:
    """Every row of a case; those that are not measured come first.

    Raises:
        WrongResult, ContenderFailed: one of ours is off, or could not do it.
    """
    missing = _missing(case.ours, options)
    if missing is None:
        return
    peers = []
    for peer in case.peers:
        reason = _why_not(peer, options, threads)
        if reason is None:
            peers.append(peer)
        elif reason:
            yield left_out(case, peer, threads, reason, ours=False)
    lacking = missing or _lacking(case, case.ours)
    if lacking:
        for one in case.ours:
            yield left_out(case, one, threads, lacking, ours=True)
        return
    payload = case.payload()
    for one in case.ours:
        payload.ready(one.form)
    gc.collect()
    with Pairing(case, payload, threads=threads, budget_s=options.seconds) as pairing:
        for peer in peers:
            yield from _against(case, peer, payload, pairing, threads)
        for found in pairing.ours():
            yield from measured(case, found, threads, ours=True)


def _against(
    case: Case, peer: Contender, payload: Any, pairing: Pairing, threads: int
) -> Iterator[Row]:
    lacking = _lacking(case, (peer,), payload_there=True)
    if lacking:
        yield left_out(case, peer, threads, lacking, ours=False)
        return
    payload.ready(peer.form)
    try:
        found = pairing.against(peer)
    except ContenderFailed as error:
        yield left_out(case, peer, threads, f"failed: {error}", ours=False)
    else:
        yield from measured(case, found, threads, ours=False)


def _why_not(peer: Contender, options: BenchOptions, threads: int) -> str | None:
    """Why a peer is not measured; "" if nobody wants to know."""
    if peer.host in HOSTS and peer.host not in options.peers:
        return ""
    if threads > 1 and not peer.threads:
        return ""
    if peer.host in HOSTS and HOSTS[peer.host].version is None:
        return f"not installed: {HOSTS[peer.host].install}"
    return None


def _missing(ours: tuple[Contender, ...], options: BenchOptions) -> str | None:
    """What an adapter lacks: its host (""), or None if nobody wants to know."""
    for one in ours:
        if one.host in HOSTS:
            if one.host not in options.peers:
                return None
            if HOSTS[one.host].version is None:
                return f"not installed: {HOSTS[one.host].install}"
    return ""


def _lacking(case: Case, contenders: tuple[Contender, ...], *, payload_there: bool = False) -> str:
    """What memory is missing, for people; "" if there is enough."""
    update = case.update_bytes
    needed = sum(min(one.memory * update, _MOST_COPIES * case.payload_bytes) for one in contenders)
    if any(one.form != "arrays" for one in contenders):
        needed += case.payload_bytes
    if not payload_there:
        # The payload, the reference (a float64 and a float32 per value), and probes.
        needed += case.payload_bytes + 4 * update + 4 * machine.PROBE_BYTES
    available = machine.available_bytes() * MEMORY_SHARE
    if needed <= available:
        return ""
    return f"left out: needs {needed / 1e9:.1f} GB of memory, {available / 1e9:.1f} GB are free"


def main() -> int:
    """Reads a job, prints its rows; the exit code."""
    job = json.loads(sys.stdin.read())
    options = BenchOptions.from_json(job["options"])
    try:
        for row in section_rows(job["section"], options, job["threads"]):
            _tell({"row": row.to_json()})
    except VeilsumError as error:
        _tell({"error": str(error), "hint": error.hint})
        return 1
    return 0


def _tell(document: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
