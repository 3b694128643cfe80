"""`veilsum backup`: a copy of a coordinator's state, taken while it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from veilsum.cli.output import JsonOption, print_json, print_line, size_text


def backup(
    out: Annotated[Path, typer.Argument(metavar="FOLDER", help="New folder for the copy.")],
    config: Annotated[Path, typer.Option("--config", help="The coordinator's TOML file.")],
    as_json: JsonOption = False,
) -> None:
    """Copy a coordinator's state while it runs, so that another can go on from there.

    Keys and certificates are not in it. A coordinator that is to go on from the copy gets it as its
    state_dir, on this machine or another; the one before must not run any more.

    \b
    Example:
      veilsum backup --config coordinator.toml /backup/monday
    """
    from veilsum.cli.config import load_coordinator
    from veilsum.transport.backup import back_up

    made = back_up(load_coordinator(config).state_dir, out)
    if as_json:
        print_json({"folder": str(out), "files": made.files, "bytes": made.size_bytes})
    else:
        print_line(f"{made.files} files, {size_text(made.size_bytes)}, in {out}")
