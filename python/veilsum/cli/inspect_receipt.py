"""`veilsum inspect` on receipts of rounds: one, or a folder with those of a run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from veilsum.errors import ConfigError, DecodeError

if TYPE_CHECKING:
    from veilsum.roster import Roster
    from veilsum.secagg.receipt import ReceiptFacts

_NAME = re.compile(r"round-([1-9][0-9]*)\.json")


def is_receipt(data: bytes) -> bool:
    """Whether a file begins as receipts do."""
    return data.startswith(b'{"receipt":{')


def receipt_facts(data: bytes, file: Path, roster: Path | None = None) -> dict[str, Any]:
    """Facts about one receipt; next to none without a roster to check it with.

    Raises:
        DecodeError: it is damaged, or not what the roster's coordinator signed.
    """
    from veilsum.secagg.receipt import check_receipt, receipt_hash

    try:
        if roster is None:
            return {
                "signature_not_checked": "give the roster with --roster",
                "hash": receipt_hash(data).hex(),
            }
        return _facts(check_receipt(data, _load(roster)))
    except DecodeError as error:
        raise DecodeError(f"{file}: {error}", hint=error.hint) from error


def examine_chain(folder: Path, roster: Path | None) -> dict[str, Any]:
    """Facts about the receipts of a run, as a coordinator keeps them in a folder.

    Raises:
        ConfigError: there are none, or there is no roster to check them with.
        DecodeError: one is not in order, or is missing between two others.
    """
    numbers = {int(found[1]): f for f in folder.iterdir() if (found := _NAME.fullmatch(f.name))}
    if not numbers:
        raise ConfigError(f"{folder} holds no receipts", hint="they are named round-<n>.json")
    if roster is None:
        raise ConfigError("receipts are checked against a roster", hint="give it with --roster")
    from veilsum.secagg.receipt import check_chain

    files = [numbers[number] for number in sorted(numbers)]
    try:
        chain = check_chain((file.read_bytes() for file in files), _load(roster))
    except OSError as error:
        raise ConfigError(f"cannot read {folder}: {error.strerror}") from error
    except DecodeError as error:
        raise DecodeError(f"{folder}: {error}", hint=error.hint) from error
    first, last = chain[0], chain[-1]
    return {
        "file": str(folder),
        "kind": "chain of receipts",
        "signatures_checked": True,
        "task": last.last.plan.task_id,
        "run": last.last.plan.run_id,
        "begins_with_round": first.last.plan.round_number,
        "rounds": [_line(facts) for facts in chain],
        "head": last.hash.hex(),
    }


def _line(facts: ReceiptFacts) -> dict[str, Any]:
    result = facts.last.result
    return {
        "round": facts.last.plan.round_number,
        "attempt": facts.last.plan.attempt,
        "sites": len(facts.survivors),
        "invited": len(facts.last.plan.cohort),
        "acknowledged": len(facts.last.acks),
        "bytes_out": sum(_bytes_out(facts)),
        "model": result.model_hash.hex(),
    }


def _bytes_out(facts: ReceiptFacts) -> list[int]:
    acks = facts.last.acks.values()
    return [sent.size_bytes for ack in acks for sent in ack.egress.sent]


def _load(file: Path) -> Roster:
    from veilsum.pki.roster_signing import SignedRoster

    try:
        return SignedRoster.from_bytes(file.read_bytes()).roster
    except OSError as error:
        raise ConfigError(f"cannot read the roster {file}: {error.strerror}") from error


def _facts(facts: ReceiptFacts) -> dict[str, Any]:
    plan, result = facts.last.plan, facts.last.result
    first = not facts.parts.previous
    return {
        "signature_checked": True,
        "follows": "nothing" if first else "not checked: the receipt before is not here",
        "consortium": plan.roster.consortium,
        "task": plan.task_id,
        "run": plan.run_id,
        "round": plan.round_number,
        "attempt": plan.attempt,
        "mask_generator": plan.mask_generator,
        "invited": len(plan.cohort),
        "vote_quorum": plan.vote_quorum,
        "survivors": list(facts.survivors),
        "voters": list(facts.voters),
        "acknowledged_by": list(facts.last.acks),
        "cohort_difference": facts.parts.difference,
        "total_weight": result.total_weight,
        "mean_digest": result.mean_digest.hex(),
        "model_from": plan.model_hash.hex(),
        "model_to": result.model_hash.hex(),
        "hash": facts.hash.hex(),
        "previous": facts.parts.previous.hex(),
        "sent": [
            {"site": site, "kind": one.kind, "messages": one.messages, "bytes": one.size_bytes}
            for site, ack in facts.last.acks.items()
            for one in ack.egress.sent
        ],
    }
