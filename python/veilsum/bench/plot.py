"""The chart of a run: how long everybody takes for the weighted mean."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from veilsum.bench.contenders import OURS
from veilsum.bench.rows import Row
from veilsum.bench.table import TITLES
from veilsum.errors import ConfigError

_OURS, _PEERS, _MUTED = "#0b6e4f", "#b8bec6", "#666666"


def require_matplotlib() -> None:
    """Raises:
    ConfigError: it is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError(
            "--plot draws with matplotlib, which is not installed",
            hint="pip install 'veilsum[bench]'",
        )


def draw(rows: Sequence[Row], about: Mapping[str, Any], path: Path) -> None:
    """Writes a PNG: a panel for each case of the run's first section, shorter bars are better.

    Raises:
        ConfigError: matplotlib is missing.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = _panels(rows)
    heights = [len(found) for _, found in panels]
    figure = Figure(figsize=(8.0, 1.6 + 0.27 * sum(heights) + 0.75 * len(panels)), dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, (title, found) in zip(axes, panels, strict=True):
        _bars(axis, title, found)
    axes[-1].set_xlabel("seconds of one thread for all updates (shorter is better)", size=9)
    peers = ", ".join(sorted({f"{row.host} {row.version}" for row in rows if row.version}))
    figure.suptitle(TITLES[panels[0][1][0].section], x=0.02, ha="left", weight="bold")
    figure.text(0.02, 0.008, f"{about['cpu']}, {about['date'][:10]}; {peers}", size=7, color=_MUTED)
    figure.tight_layout(rect=(0, 0.025, 1, 0.99))
    figure.savefig(path, format="png")


def _panels(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """(title, rows) by case, the fastest first, of the first section that was measured."""
    measured = [row for row in rows if row.seconds is not None and row.threads == 1]
    if not measured:
        raise ConfigError("nothing was measured with one thread, so there is nothing to draw")
    cases: dict[str, list[Row]] = {}
    for row in measured:
        if row.section == measured[0].section:
            cases.setdefault(f"{row.case}, {row.part}" if row.part else row.case, []).append(row)
    return [
        (title, sorted(found, key=lambda row: row.seconds or 0.0)) for title, found in cases.items()
    ]


def _is_ours(row: Row) -> bool:
    return row.ours or row.contender.startswith(OURS)


def _bars(axis: Any, title: str, rows: Sequence[Row]) -> None:
    places = range(len(rows), 0, -1)
    seconds = [row.seconds or 0.0 for row in rows]
    colours = [_OURS if _is_ours(row) else _PEERS for row in rows]
    bars = axis.barh(places, seconds, color=colours, height=0.7)
    axis.bar_label(bars, [f"{value:.3g} s" for value in seconds], padding=3, size=7)
    names = [row.contender + ("" if row.correct else " (WRONG)") for row in rows]
    axis.set_yticks(places, names, size=8)
    for label, row in zip(axis.get_yticklabels(), rows, strict=True):
        label.set_weight("bold" if _is_ours(row) else "normal")
    axis.set_title(title, size=9, loc="left")
    axis.set_xlim(0, 1.12 * max(seconds))
    axis.tick_params(axis="x", labelsize=8)
    axis.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
