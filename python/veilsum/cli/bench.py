"""`veilsum bench`: what aggregation costs on this machine, beside what others take."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from veilsum.cli.exits import FAILED
from veilsum.cli.output import JsonOption, print_error, print_json, progress_console
from veilsum.errors import ConfigError

if TYPE_CHECKING:
    from veilsum.bench.options import BenchOptions
    from veilsum.bench.rows import Row

_FILE_WIDTH = 160


def bench(
    only: Annotated[
        str | None,
        typer.Option(help="Sections, by commas: mean, codec, rule, masked, transport."),
    ] = None,
    sites: Annotated[
        int | None, typer.Option(help="Updates; default: 12, of a small model 100.")
    ] = None,
    scale: Annotated[
        float | None, typer.Option(help="Of the number of parameters of each model; default: 1.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A minute: --scale 0.015625 --seconds 0.2.")
    ] = False,
    seconds: Annotated[
        float | None,
        typer.Option(help="For the rounds of each pair; 3 to 9 are made. Default: 5."),
    ] = None,
    peer: Annotated[
        str | None,
        typer.Option(help="By commas: those to time (default: all that are installed), or none."),
    ] = None,
    threads: Annotated[
        str | None,
        typer.Option(help="By commas; default: 1 and, if there are more, all processors."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw a chart into this PNG file.")] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Write the tables into this file as well.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure what aggregation costs here, side by side with what else is installed.

    Each contender runs in a process of its own and is checked against a float64 reference before
    it is timed, in turn with the others. Nothing is measured for which memory is not free.
    A peer may be your own: module:function, called with a list of {name: array} and the weights.

    \b
    Example:
      veilsum bench --quick
      veilsum bench --only mean,codec --peer numpy,torch,flwr --plot mean.png
    """
    options = _options(only, sites, scale, seconds, peer, threads, quick=quick)
    if plot is not None:
        from veilsum.bench.plot import require_matplotlib

        require_matplotlib()
        _require_folder(plot)
    if markdown is not None:
        _require_folder(markdown)
    rows = _measure(options, plot, markdown, as_json=as_json)
    wrong = [row for row in rows if row.correct is False]
    for row in wrong:
        # Not ours: ours would have ended the run.
        print_error(f"{row.contender} is off in {row.case}: see its error in the table")
    if not any(row.reason is None for row in rows):
        print_error("nothing was measured", "a smaller --scale needs less memory")
        raise typer.Exit(FAILED)


def _measure(
    options: BenchOptions, plot: Path | None, markdown: Path | None, *, as_json: bool
) -> list[Row]:
    from rich.console import Console

    from veilsum.bench import run, table

    about = run.facts(options)
    # A file or a pipe has no width that would have to be kept to.
    console = None if as_json else Console(width=None if sys.stdout.isatty() else _FILE_WIDTH)
    progress = progress_console()
    rows: list[Row] = []
    for job in run.jobs(options):
        found: list[Row] = []
        for row in run.run_job(job, options):
            found.append(row)
            if progress is not None and row.reason is None:
                progress.print(
                    f"{job.section}, {row.case}: {row.contender}", markup=False, style="dim"
                )
        rows += found
        if console is not None:
            for title, group in table.groups(found):
                table.show(console, title, group)
    whole = run.document(about, rows, os.getloadavg()[0])
    if as_json:
        print_json(whole)
    if markdown is not None:
        markdown.write_text(table.markdown(rows))
    if plot is not None:
        from veilsum.bench.plot import draw

        draw(rows, whole["about"], plot)
    return rows


def _require_folder(path: Path) -> None:
    if not path.parent.is_dir():
        raise typer.BadParameter(f"there is no folder {str(path.parent)!r}")


def _options(
    only: str | None,
    sites: int | None,
    scale: float | None,
    seconds: float | None,
    peer: str | None,
    threads: str | None,
    *,
    quick: bool,
) -> BenchOptions:
    """The defaults where nothing is given."""
    from veilsum.bench.options import QUICK_SCALE, QUICK_SECONDS, BenchOptions
    from veilsum.devices import available_threads

    processors = available_threads()
    given: dict[str, object] = {"threads": (1, processors) if processors > 1 else (1,)}
    if quick:
        given |= {"scale": QUICK_SCALE, "seconds": QUICK_SECONDS}
    given |= {
        name: value
        for name, value in (("sites", sites), ("scale", scale), ("seconds", seconds))
        if value is not None
    }
    if only is not None:
        given["only"] = _names(only)
    if peer is not None:
        given["peers"] = () if peer == "none" else _names(peer)
    try:
        if threads is not None:
            given["threads"] = _numbers(threads)
        return BenchOptions(**given)  # type: ignore[arg-type]
    except ConfigError as error:
        raise typer.BadParameter(error.in_a_line) from error


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(filter(None, (name.strip() for name in text.split(",")))))


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(name) for name in _names(text))
    except ValueError as error:
        raise ConfigError(f"threads must be numbers by commas, got {text!r}") from error
