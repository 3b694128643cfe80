"""The report's two charts, as SVG. Colours come from the page's style sheet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TypeAlias

_Scale: TypeAlias = Callable[[float], float]

_WIDTH = 720
_LEFT = 56
_RIGHT = 150
_TOP = 16
_ROW = 30


@dataclass(frozen=True, slots=True)
class Line:
    """A level to compare with, drawn across the chart.

    Attributes:
        style: class in the style sheet.
    """

    label: str
    value: float
    style: str


@dataclass(frozen=True, slots=True)
class Span:
    """One row of the second chart: a value before and a value after."""

    label: str
    before: float
    after: float


def curve_chart(values: Sequence[float], levels: Sequence[Line], *, marked: int | None) -> str:
    """AUC after each round, from before the first.

    Args:
        values: one per round, the initial model's first.
        levels: drawn across, labelled at the right.
        marked: a round to point out; None for none.
    """
    height, bottom = 320, 36
    low, high = _bounds([*values, *(level.value for level in levels)])
    last = len(values) - 1

    def x(position: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * position / last

    def y(value: float) -> float:
        return _TOP + (height - _TOP - bottom) * (high - value) / (high - low)

    parts = _horizontal_grid(low, high, y)
    for number in range(0, last + 1, max(1, last // 8)):
        parts.append(_text(x(number), height - 14, str(number), "tick", "middle"))
    parts.append(_text(x(last / 2), height, "rounds", "tick", "middle"))
    if marked is not None:
        parts.append(_segment(x(marked), _TOP, x(marked), height - bottom, "marked"))
        parts.append(_text(x(marked) + 4, height - bottom - 6, "one site killed", "tick", "start"))
    for level in levels:
        parts.append(_segment(x(0), y(level.value), x(last), y(level.value), level.style))
    points = " ".join(f"{x(i):.1f},{y(value):.1f}" for i, value in enumerate(values))
    parts.append(f'<polyline class="federated" points="{points}"/>')
    labels = [Line("federated", values[-1], "federated"), *levels]
    parts += _end_labels(labels, x(last) + 8, y)
    return _svg(height, "AUC of the federated model after each round", parts)


def span_chart(spans: Sequence[Span]) -> str:
    """One row per site: AUC before (hollow) and after (filled)."""
    height = _TOP + _ROW * len(spans) + 34
    low, high = _bounds([value for span in spans for value in (span.before, span.after)])
    left = 120

    def x(value: float) -> float:
        return left + (_WIDTH - left - 40) * (value - low) / (high - low)

    parts = []
    for tick in _ticks(low, high):
        parts.append(_segment(x(tick), _TOP, x(tick), height - 30, "grid"))
        parts.append(_text(x(tick), height - 12, f"{tick:.2f}", "tick", "middle"))
    for row, span in enumerate(spans):
        y = _TOP + _ROW * (row + 0.5)
        parts.append(_text(left - 12, y + 4, span.label, "label", "end"))
        parts.append(_segment(x(span.before), y, x(span.after), y, "span"))
        parts.append(f'<circle class="before" cx="{x(span.before):.1f}" cy="{y:.1f}" r="5"/>')
        parts.append(f'<circle class="after" cx="{x(span.after):.1f}" cy="{y:.1f}" r="5"/>')
    return _svg(height, "AUC on each site's unseen patients, alone and federated", parts)


def _bounds(values: Sequence[float]) -> tuple[float, float]:
    """Multiples of 0.05 around all values, and not equal."""
    low = int(min(values) * 20) / 20
    high = -int(-max(values) * 20 - 1e-9) / 20
    while high < max(values) or high <= low:
        high += 0.05
    return low, round(high, 2)


def _ticks(low: float, high: float) -> list[float]:
    step = 0.05 if high - low < 0.45 else 0.1
    return [low + step * k for k in range(round((high - low) / step) + 1)]


def _horizontal_grid(low: float, high: float, y: _Scale) -> list[str]:
    parts = []
    for tick in _ticks(low, high):
        parts.append(_segment(_LEFT, y(tick), _WIDTH - _RIGHT, y(tick), "grid"))
        parts.append(_text(_LEFT - 8, y(tick) + 4, f"{tick:.2f}", "tick", "end"))
    return parts


def _end_labels(labels: Sequence[Line], at: float, y: _Scale) -> list[str]:
    """Labels next to the ends of their lines, pushed apart so that none covers another."""
    parts = []
    lowest = float("-inf")
    for label in sorted(labels, key=lambda label: -label.value):
        place = max(y(label.value) + 4, lowest + 16)
        lowest = place
        parts.append(_text(at, place, f"{label.label} {label.value:.3f}", "label", "start"))
    return parts


def _segment(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return f'<line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, style: str, anchor: str) -> str:
    return (
        f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">'
        f"{escape(text)}</text>"
    )


def _svg(height: float, title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )
