"""`veilsum ledger`: what a person decides about a site's memory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from veilsum.cli.output import JsonOption, print_json, print_line

app = typer.Typer(no_args_is_help=True, help="What a site must not forget.")


@app.command()
def adopt(
    config: Annotated[Path, typer.Option("--config", help="The site's TOML file.")],
    as_json: JsonOption = False,
) -> None:
    """Use a ledger that was copied or restored. The site must be stopped.

    What the site did after the copy was made is not in it, so that it could be asked to do it
    again: a second vote in an attempt, an update that was in a sum. Abort every run this site
    was in since then, and start new ones from a model trained further, before the site joins.
    A damaged ledger cannot be adopted.

    \b
    Example:
      veilsum ledger adopt --config site.toml
    """
    from veilsum.cli.config import load_site
    from veilsum.cli.exits import SettingsError
    from veilsum.transport.ledger_file import adopt_ledger

    folder = load_site(config).ledger
    if folder is None:
        raise SettingsError(f"{config} names no ledger")
    records = adopt_ledger(folder)
    if as_json:
        print_json({"event": "adopted", "ledger": str(folder), "records": records})
    else:
        print_line(f"adopted {folder} with {records} records")
