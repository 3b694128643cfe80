"""`veilsum demo`: twelve hospitals on one machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from veilsum.cli.exits import FAILED, USAGE
from veilsum.cli.output import JsonOption, print_error, print_json


def demo(
    sites: Annotated[int, typer.Option(help="Number of hospitals, 3 to 12.")] = 12,
    rounds: Annotated[int, typer.Option(help="Rounds of training.")] = 12,
    codec: Annotated[str, typer.Option(help="Codec of the updates, with --plain.")] = "f32",
    plain: Annotated[
        bool, typer.Option("--plain", help="No masks: the coordinator can read the updates.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the model, the training and the rounding.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder for report, model and logs.")] = Path(
        "veilsum-demo"
    ),
    drop: Annotated[
        str,
        typer.Option(metavar="SITE@ROUND", help="Who fails when, or none (default: one, halfway)."),
    ] = "",
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
    try:
        import torch  # noqa: F401  the demo's sites train with it
    except ImportError:
        print_error(
            "the demo needs PyTorch", "install it with: python -m pip install 'veilsum[demo]'"
        )
        raise typer.Exit(USAGE) from None
    from rich.console import Console

    from veilsum.demo.options import DemoOptions
    from veilsum.demo.run import run_demo

    options = DemoOptions(
        sites=sites, rounds=rounds, plain=plain, codec=codec, seed=seed, out=out, drop=drop
    )
    terminal = Console(stderr=True)
    outcome = run_demo(
        options,
        out=None if as_json else Console(soft_wrap=True),
        live=terminal if terminal.is_terminal else None,
    )
    if as_json:
        print_json(outcome.document())
    for problem in outcome.problems:
        print_error(problem)
    if outcome.problems:
        raise typer.Exit(FAILED)
