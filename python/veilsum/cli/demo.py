"""`veilsum demo`: twelve hospitals on one machine."""

from __future__ import annotations

from typing import Annotated

import typer

from veilsum.cli.output import JsonOption


def demo(
    sites: Annotated[int, typer.Option(help="Number of hospitals, 3 to 12.")] = 12,
    as_json: JsonOption = False,
) -> None:
    """Train a lung-nodule model among twelve hospitals on this machine.

    \b
    Example:
      veilsum demo
      veilsum demo --sites 5 --rounds 2
    """
