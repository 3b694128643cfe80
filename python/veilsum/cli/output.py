"""What goes to which stream.

Results go to stdout: text for people, or with --json one JSON document per line and nothing
else. Errors go to stderr as an `error:` line and, where something can be done about it, a
`hint:` line. Progress goes to stderr and only if that is a terminal.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Annotated

import typer
from rich.console import Console

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print JSON, one document per line, for machines.")
]


def print_json(document: object) -> None:
    """One line of JSON on stdout, written at once so that a reader in a pipe sees it."""
    print(json.dumps(document, sort_keys=True, separators=(",", ":")), flush=True)  # noqa: T201


def print_line(text: str) -> None:
    """One line for people on stdout."""
    print(text, flush=True)  # noqa: T201


def print_facts(facts: Iterable[tuple[str, object]]) -> None:
    """Names and values in two columns."""
    pairs = list(facts)
    width = max((len(name) for name, _ in pairs), default=0)
    for name, value in pairs:
        print_line(f"{name:<{width}}  {value}")


def print_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table on stdout, in columns. Nothing is cut: names and digests are to be copied."""
    lines = [list(headings), *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print_line("  ".join(cells).rstrip())


def print_error(message: str, hint: str | None = None) -> None:
    """The error and what to do about it, on stderr."""
    print(f"error: {message}", file=sys.stderr)  # noqa: T201
    if hint:
        print(f"hint: {hint}", file=sys.stderr, flush=True)  # noqa: T201


def progress_console() -> Console | None:
    """Where progress goes, or None if nobody watches."""
    return Console(stderr=True) if sys.stderr.isatty() else None


def size_text(size: int) -> str:
    """A number of bytes for people."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            return f"{size} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("unreachable")
