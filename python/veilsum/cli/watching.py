"""How a run looks while it goes on: one line per finished thing, one live line on a terminal."""

from __future__ import annotations

import dataclasses
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from veilsum.cli.output import print_line, progress_console, size_text
from veilsum.errors import VeilsumError

if TYPE_CHECKING:
    from rich.status import Status

    from veilsum.control import RunEvent


def event_document(event: RunEvent) -> dict[str, Any]:
    """An event as --json prints it: the fields of RunEvent."""
    return dataclasses.asdict(event)


def event_line(event: RunEvent) -> str | None:
    """An event as one line of the record, or None if it is only progress."""
    place = f"round {event.round_number}" if event.round_number else "run"
    match event.kind:
        case "site":
            return f"{place}: {event.site} {event.detail}"
        case "round":
            metrics = "".join(f", {name} {value:.4f}" for name, value in event.metrics.items())
            result = f"digest {event.digest[:16]}{metrics}" if event.digest else event.detail
            return f"{place}: {size_text(event.bytes_in)} in {event.seconds:.1f} s, {result}"
        case "run":
            return f"run: {event.detail}"
        case _:
            return None


def live_line(event: RunEvent) -> str:
    """What is going on right now."""
    parts = [f"round {event.round_number}"]
    if event.phase:
        parts.append(event.phase)
    if event.sites_expected:
        parts.append(f"{event.sites_in} of {event.sites_expected} sites")
    if event.bytes_in:
        parts.append(size_text(event.bytes_in))
    if event.kind == "progress" and event.site:
        parts.append(f"{event.site} has trained {event.fraction:.0%}")
    return ", ".join(parts)


class RunView:
    """Shows events: finished things on stdout, the present moment on a terminal's stderr."""

    def __init__(self, *, silent: bool) -> None:
        self._silent = silent
        self._status: Status | None = None

    def __enter__(self) -> Self:
        console = progress_console()
        if console is not None:
            self._status = console.status("connected")
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

    def lost(self, error: VeilsumError) -> None:
        """The coordinator does not answer, and is tried again."""
        if self._status is not None:
            self._status.update(f"trying again: {error}")

    def show(self, event: RunEvent) -> None:
        """Takes the next event."""
        line = event_line(event)
        if line is not None and not self._silent:
            print_line(line)
        if self._status is not None:
            self._status.update(live_line(event))
