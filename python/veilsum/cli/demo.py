"""`veilsum demo`: twelve hospitals on one machine."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from veilsum.cli.exits import FAILED
from veilsum.cli.output import JsonOption, print_error, print_json, progress_console
from veilsum.errors import ConfigError

if TYPE_CHECKING:
    from veilsum.demo.options import DemoOptions


def demo(
    sites: Annotated[int | None, typer.Option(help="Hospitals, 3 to 12; default: 12.")] = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds; default: 12.")] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="No masks: the coordinator can read the updates.")
    ] = False,
    codec: Annotated[
        str | None, typer.Option(help="Of the updates, with --plain; default: f32.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of the model, the training and the rounding; default: 1.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for report, model and logs; default: veilsum-demo."),
    ] = None,
    drop: Annotated[
        str | None,
        typer.Option(
            metavar="SITE@ROUND",
            help="Who fails when, or none; default: the largest site, halfway.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train a lung-nodule model among twelve hospitals, on this machine.

    Real processes, certificates and masks over loopback; one hospital fails on the way. Ends
    with a table, a report and a proof that the masked sum is the plain sum, bit for bit.

    \b
    Example:
      veilsum demo
      veilsum demo --sites 5 --rounds 2 --out quick
    """
    _require_torch()
    from rich.console import Console

    from veilsum.demo.run import run_demo

    options = _options(
        sites=sites, rounds=rounds, plain=plain, codec=codec, seed=seed, out=out, drop=drop
    )
    console = None if as_json else Console(soft_wrap=True)
    outcome = run_demo(options, out=console, live=progress_console())
    if as_json:
        print_json(outcome.document())
    for problem in outcome.problems:
        print_error(problem)
    if outcome.problems:
        raise typer.Exit(FAILED)


def _require_torch() -> None:
    if importlib.util.find_spec("torch") is None:
        raise ConfigError(
            "the demo trains with torch, which is not installed",
            hint="python -m pip install 'veilsum[demo]'",
        )


def _options(**given: Any) -> DemoOptions:
    """The demo's own defaults where nothing is given."""
    from veilsum.demo.options import DemoOptions

    try:
        return DemoOptions(**{name: value for name, value in given.items() if value is not None})
    except ConfigError as error:
        raise typer.BadParameter(error.in_a_line) from error
