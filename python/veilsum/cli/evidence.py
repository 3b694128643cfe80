"""What a file of evidence says, and what it shows."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import assert_never

from veilsum import secagg
from veilsum.errors import ConfigError
from veilsum.roster import Roster
from veilsum.secagg.evidence import MAX_EVIDENCE_BYTES


def stated_facts(data: bytes) -> dict[str, object]:
    """What the evidence claims; nothing of it is verified.

    Raises:
        DecodeError: it is no evidence.
    """
    evidence = secagg.Evidence.from_bytes(data)
    return {
        "fault": evidence.fault.name,
        "accused": _name(evidence.accused),
        "manifest": hashlib.sha256(evidence.manifest).hexdigest(),
        "messages": len(evidence.envelopes),
        "papers": len(evidence.papers),
    }


def evidence_facts(file: Path, roster: Roster) -> tuple[bool, dict[str, object]]:
    """Whether a file shows anything, and what.

    Raises:
        ConfigError: it cannot be read.
    """
    data = _read(file)
    facts: dict[str, object] = {"file": str(file), "roster": roster.hash.hex()}
    match secagg.check_evidence(data, roster):
        case secagg.Guilty(accused, fault):
            facts |= {"shows": _name(accused), "fault": fault.name}
            facts["meaning"] = f"{_name(accused)} {secagg.FAULT_TEXTS[fault]}"
        case secagg.Dispute(dealer, complainer):
            facts |= {"shows": "a dispute", "dealer": dealer, "complainer": complainer}
        case secagg.Invalid(reason):
            facts |= {"shows": "nothing", "reason": reason}
            return False, facts
        case other:
            assert_never(other)
    return True, facts


def _name(accused: str) -> str:
    return f"site {accused}" if accused else "the coordinator"


def _read(file: Path) -> bytes:
    try:
        if file.stat().st_size > MAX_EVIDENCE_BYTES:
            raise ConfigError(f"{file} is larger than any evidence")
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from error
