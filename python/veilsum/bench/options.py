"""What `veilsum bench` is asked to measure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from veilsum.bench.installed import PEERS
from veilsum.errors import ConfigError

SECTIONS = ("mean", "codec", "rule", "masked", "transport")
QUICK_SCALE = 1 / 64
QUICK_SECONDS = 0.2
_OWN = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """Options of `veilsum bench`.

    Attributes:
        only: sections.
        sites: number of updates; None for each case's own.
        scale: of the number of parameters of every model.
        seconds: what the rounds of one pair of contenders may take; at least three are made, and
            at most nine.
        peers: distributions (installed.PEERS) that are timed beside ours, and "module:function"
            of the caller's own.
        threads: numbers of them that everybody gets, one after the other.

    Raises:
        ConfigError: an option cannot work.
    """

    only: tuple[str, ...] = SECTIONS
    sites: int | None = None
    scale: float = 1.0
    seconds: float = 5.0
    peers: tuple[str, ...] = PEERS
    threads: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        for section in self.only:
            if section not in SECTIONS:
                raise ConfigError(
                    f"there is no section {section!r}", hint=f"known: {', '.join(SECTIONS)}"
                )
        for peer in self.peers:
            if peer not in PEERS and not _OWN.fullmatch(peer):
                raise ConfigError(
                    f"there is no peer {peer!r}",
                    hint=f"known: {', '.join(PEERS)}, none, and module:function of your own",
                )
        if not self.only:
            raise ConfigError("name at least one section", hint=f"known: {', '.join(SECTIONS)}")
        if not self.threads or any(not 1 <= count <= 1024 for count in self.threads):
            raise ConfigError(f"threads must be 1 to 1024, got {self.threads}")
        if self.sites is not None and not 3 <= self.sites <= 10_000:
            raise ConfigError(f"sites must be 3 to 10000, got {self.sites}")
        if not 0 < self.scale <= 16:
            raise ConfigError(f"scale must be above 0 and at most 16, got {self.scale}")
        if not 0 < self.seconds <= 3600:
            raise ConfigError(f"seconds must be above 0 and at most 3600, got {self.seconds}")

    @property
    def own_peers(self) -> tuple[str, ...]:
        """Those that are functions of the caller's."""
        return tuple(peer for peer in self.peers if peer not in PEERS)

    def to_json(self) -> dict[str, Any]:
        """For the process that measures, and for the report."""
        return asdict(self)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> BenchOptions:
        """The way back."""
        given: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in found.items()
        }
        return cls(**given)
