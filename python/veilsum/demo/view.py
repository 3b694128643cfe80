"""What the demo shows while it goes on: finished things as lines, the present moment live."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.status import Status

from veilsum.control import RunEvent
from veilsum.demo.stopping import stop_if_asked

_STEPS = {
    "join": "sites join",
    "keys": "key exchange",
    "shares": "secret shares",
    "inputs": "training and masked updates",
    "updates": "training and updates",
    "votes": "vote on who is in the sum",
    "unmask": "unmasking the sum",
    "acks": "sites check the result",
}


class DemoView:
    """Lines go to `out`, the moving line to `live`; either may be nobody.

    Whenever there is something to tell, the demo may also end: see stopping.py.

    Args:
        out: for what is finished.
        live: a terminal, for what goes on right now.
    """

    def __init__(self, out: Console | None, live: Console | None) -> None:
        self._out = out
        self._status: Status | None = live.status("starting") if live else None

    def __enter__(self) -> Self:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._status is not None:
            self._status.stop()

    def line(self, text: str) -> None:
        """Something is finished."""
        stop_if_asked()
        if self._out is not None:
            self._out.print(text, highlight=False, markup=False, soft_wrap=True)

    def now(self, text: str) -> None:
        """What goes on right now."""
        stop_if_asked()
        if self._status is not None:
            self._status.update(text)

    def event(self, event: RunEvent) -> None:
        """Takes an event of the run; rounds that end are the caller's to tell."""
        place = f"round {event.round_number}"
        match event.kind:
            case "phase" | "progress":
                self.now(_moment(place, event))
            case "site":
                self.now(_moment(place, event))
                if event.detail.startswith(("dropped", "declined")):
                    self.line(f"{place}: {event.site} {event.detail}")


def _moment(place: str, event: RunEvent) -> str:
    parts = [f"{place}: {_STEPS.get(event.phase, event.phase)}"]
    if event.sites_expected:
        parts.append(f"{event.sites_in} of {event.sites_expected} sites")
    if event.bytes_in:
        parts.append(f"last update {size_text(event.bytes_in)} after {event.seconds:.1f} s")
    if event.kind == "progress":
        parts.append(f"{event.site} has trained {event.fraction:.0%}")
    return ", ".join(parts)


def size_text(size: float) -> str:
    """A number of bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024 or unit == "MiB":
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError("unreachable")
