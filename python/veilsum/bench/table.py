"""Rows as tables: for a terminal, and as Markdown for a page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Table

from veilsum.bench.rows import Row

TITLES = {
    "mean": "Weighted mean of float32 updates",
    "codec": "Decode and sum",
    "rule": "Robust rules",
    "masked": "A masked round",
    "transport": "Transport over gRPC on loopback, mutual TLS",
}
HEADINGS = (
    "who", "time", "±", "GB/s", "Gcoord/s", "of copy", "peak RSS", "call's own", "error",
    "ours is faster",
)  # fmt: skip
_WIDE = 132
_NARROW = (0, 1, 3, 5, 7, 8, 9)  # columns that fit in 80 characters


def groups(rows: Iterable[Row]) -> Iterator[tuple[str, list[Row]]]:
    """(title, rows) of each table, ours first."""

    def key(row: Row) -> tuple[str, int, str, str]:
        return row.section, row.threads, row.case, row.part

    order = {name: number for number, name in enumerate(TITLES)}
    ranked = sorted(rows, key=lambda row: (order[row.section], row.threads))  # stable otherwise
    cases: dict[tuple[str, int, str, str], list[Row]] = {}
    for row in ranked:
        cases.setdefault(key(row), []).append(row)
    for (section, threads, case, part), found in cases.items():
        what = f"{case}, {part}" if part else case
        yield (
            f"{TITLES[section]}: {what}; {_threads(section, threads)}",
            sorted(found, key=lambda row: not row.ours),
        )


def _threads(section: str, threads: int) -> str:
    if section == "transport":
        return "all processes together"
    return "one thread" if threads == 1 else f"{threads} threads"


def cells(row: Row) -> list[str]:
    """One line of a table."""
    name = f"{row.contender} ({row.version})" if row.version else row.contender
    if row.reason is not None:
        return [name, row.reason]
    return [
        name,
        _time(row.seconds),
        _share(row.spread),
        _number(row.gb_per_s),
        _number(row.gcoord_per_s),
        _share(row.of_copy),
        _bytes(row.peak_bytes),
        _bytes(row.extra_bytes),
        error_text(row),
        ratio_text(row),
    ]


def error_text(row: Row) -> str:
    """How far off, in the unit of the table, and loud if it is more than is right."""
    if row.error is None:
        return ""
    text = f"{row.error:.2g}"
    return text if row.correct else f"WRONG: {text}, right is {row.allowed:.3g}"


def ratio_text(row: Row) -> str:
    """How many times faster each of ours was."""
    others = {name: value for name, value in row.times.items() if name != row.contender}
    if len(others) == 1 and not row.ours:
        return f"{next(iter(others.values())):.2f} x"
    return ", ".join(f"{value:.2f} x ({name})" for name, value in others.items())


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def _share(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _bytes(size: int | None) -> str:
    return "" if size is None else f"{size / (1 << 20):,.0f} MiB"


# --- where to ----------------------------------------------------------------------------


def headings(rows: Iterable[Row]) -> list[str]:
    """With the unit of errors."""
    units = {row.unit for row in rows if row.unit}
    return [f"error, {', '.join(units)}" if h == "error" and units else h for h in HEADINGS]


def show(console: Console, title: str, rows: Sequence[Row]) -> None:
    """One table on a terminal; what was left out is said below it."""
    shown = range(len(HEADINGS)) if console.width >= _WIDE else _NARROW
    named = headings(rows)
    console.print(f"\n{title}", style="bold", markup=False, highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number in shown:
        justify: Literal["left", "right"] = "right" if number else "left"
        table.add_column(named[number], justify=justify, overflow="fold")
    for row in rows:
        if row.reason is None:
            found = cells(row)
            table.add_row(*(found[number] for number in shown), style="bold" if row.ours else None)
    if table.rows:
        console.print(table)
    for name, reason in ((cells(row)[0], row.reason) for row in rows if row.reason is not None):
        console.print(f"{name}: {reason}", markup=False, highlight=False)


def markdown(rows: Iterable[Row]) -> str:
    """All tables, for a page."""
    lines: list[str] = []
    for title, found in groups(rows):
        lines += [f"### {title}", ""]
        lines += [f"| {' | '.join(headings(found))} |", f"|{' --- |' * len(HEADINGS)}"]
        lines += [f"| {' | '.join(cells(row))} |" for row in found if row.reason is None]
        lines.append("")
        for reason, missing in groupby(
            sorted((row for row in found if row.reason), key=lambda row: str(row.reason)),
            key=lambda row: row.reason,
        ):
            lines += [f"{', '.join(row.contender for row in missing)}: {reason}.", ""]
    return "\n".join(lines)
