"""What `veilsum inspect` says of an egress ledger: kinds, counts, bytes, and whether it holds."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from veilsum.errors import ConfigError, DecodeError, LedgerError

_HEAD = re.compile("[0-9a-fA-F]{64}")


def egress_facts(data: bytes, file: Path, head: str | None = None) -> dict[str, Any]:
    """Checks every record.

    Args:
        head: one that the site told before, 64 hex digits: the ledger must go through it.

    Raises:
        ConfigError: `head` is no head.
        DecodeError: names the first record that is not what was written, or the ledger does
            not go through `head`.
    """
    from veilsum.site.egress import EgressChain, EgressHead

    try:
        whose = EgressHead.from_bytes(data)
        chain = EgressChain(whose)
        end = len(whose.to_bytes())
        links = [chain.summary().head]
        times = []
        for record, size in chain.read(data[end:]):
            links.append(chain.summary().head)
            times.append(record.unix_ms)
            end += size
    except LedgerError as error:
        raise DecodeError(f"{file}: {error}") from error
    summary = chain.summary()
    facts: dict[str, Any] = {
        "consortium": whose.consortium,
        "site": whose.site,
        "messages": len(times),
        "sent_bytes": sum(one.size_bytes for one in summary.sent),
        "head": summary.head.hex(),
    }
    if times:
        facts |= {"first": _time(times[0]), "last": _time(times[-1])}
    if end < len(data):
        facts["bytes_of_an_unfinished_record"] = len(data) - end
    if head is not None:
        facts["messages_after_given_head"] = len(times) - _place(links, head, file)
    facts["sent"] = [
        {"kind": one.kind, "messages": one.messages, "bytes": one.size_bytes}
        for one in summary.sent
    ]
    return facts


def _place(links: list[bytes], head: str, file: Path) -> int:
    if not _HEAD.fullmatch(head):
        raise ConfigError(f"the head of an egress ledger has 64 hexadecimal digits, got {head!r}")
    given = bytes.fromhex(head)
    if given not in links:
        raise DecodeError(
            f"{file}: the ledger does not go through head {head.lower()}",
            hint="its end was cut off, or it is another ledger than the one whose head that is",
        )
    return links.index(given)


def _time(unix_ms: int) -> str:
    return datetime.fromtimestamp(unix_ms / 1000, UTC).isoformat(timespec="milliseconds")
