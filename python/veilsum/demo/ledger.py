"""What left each site, from the sites' own logs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

_SENT = "sent"


@dataclass(frozen=True, slots=True)
class Traffic:
    """Messages of one kind that one site sent.

    Attributes:
        messages: how many.
        size_bytes: all together, before TLS.
    """

    messages: int
    size_bytes: int


Ledger = Mapping[str, Mapping[str, Traffic]]
"""site -> kind of message -> traffic."""


def read_ledger(logs: Path, sites: Iterable[str]) -> dict[str, dict[str, Traffic]]:
    """Adds up what the sites' logs say they sent."""
    return {site: _traffic(logs / f"{site}.log") for site in sites}


def total_bytes(traffic: Mapping[str, Traffic]) -> int:
    """Bytes of all kinds together."""
    return sum(kind.size_bytes for kind in traffic.values())


def kinds(ledger: Ledger) -> list[str]:
    """All kinds of message, those with most bytes first."""
    sizes: Counter[str] = Counter()
    for traffic in ledger.values():
        sizes.update({kind: sent.size_bytes for kind, sent in traffic.items()})
    return [kind for kind, _ in sizes.most_common()]


def _traffic(log: Path) -> dict[str, Traffic]:
    messages: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        entry = _entry(line)
        if entry.get("event") == _SENT:
            kind = str(entry["kind"])
            messages[kind] += 1
            sizes[kind] += int(entry["bytes"])
    return {kind: Traffic(messages[kind], sizes[kind]) for kind in sorted(messages)}


def _entry(line: str) -> dict[str, str]:
    """A line of the log; nothing for one that is not JSON, such as what a killed process was
    writing, or a warning of a library."""
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}
