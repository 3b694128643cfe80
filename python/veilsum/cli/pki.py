"""`veilsum pki`: the consortium's certificates and roster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from veilsum.cli.output import JsonOption, print_facts, print_json
from veilsum.pki.identity import ROLES, Role

app = typer.Typer(
    help="Make the consortium's certificate authority, certificates and roster.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_Folder = Annotated[Path, typer.Option("--folder", help="The authority's private folder.")]


@app.command("init")
def init(
    consortium: Annotated[str, typer.Argument(help="Name of the consortium.")],
    folder: _Folder = Path("pki"),
    days: Annotated[int, typer.Option(help="How long the authority is valid.")] = 3650,
    as_json: JsonOption = False,
) -> None:
    """Make a certificate authority.

    Its key stays in the folder and signs certificates; no other process needs it.

    \b
    Example:
      veilsum pki init lung-study
    """
    from veilsum.pki.authority import CERTIFICATE_FILE, create_authority

    authority = create_authority(folder, consortium, days=days)
    _show(
        {
            "consortium": authority.consortium,
            "folder": str(folder),
            "ca": str(folder / CERTIFICATE_FILE),
            "valid_until": authority.certificate.not_valid_after_utc.isoformat(),
        },
        as_json,
    )


@app.command("issue")
def issue(
    role: Annotated[str, typer.Argument(help=f"One of {', '.join(ROLES)}.")],
    name: Annotated[str, typer.Argument(help="Name of the member, 1 to 64 bytes.")],
    folder: _Folder = Path("pki"),
    out: Annotated[
        Path | None, typer.Option(help="Where the member's folder goes (default: --folder).")
    ] = None,
    host: Annotated[
        list[str] | None,
        typer.Option(help="Name or address of a coordinator, besides localhost; repeatable."),
    ] = None,
    region: Annotated[str, typer.Option(help="Where a site's data may stay.")] = "",
    days: Annotated[int, typer.Option(help="How long the certificates are valid.")] = 365,
    as_json: JsonOption = False,
) -> None:
    """Make a member's keys and certificates in a folder of its own.

    \b
    Example:
      veilsum pki issue coordinator hub --host hub.example.org
      veilsum pki issue site lyon --region eu
      veilsum pki issue operator anna
    """
    from veilsum.pki.authority import load_authority
    from veilsum.pki.issue import issue as issue_files

    known_role = _role(role)
    files = issue_files(
        load_authority(folder),
        known_role,
        name,
        out or folder,
        hosts=host or (),
        region=region,
        days=days,
    )
    shown: dict[str, object] = {
        "role": role,
        "name": name,
        "folder": str(files.folder),
        "ca": str(files.ca),
        "tls_certificate": str(files.tls_certificate),
        "tls_key": str(files.tls_key),
    }
    if files.signing_key is not None:
        shown["signing_certificate"] = str(files.signing_certificate)
        shown["signing_key"] = str(files.signing_key)
    _show(shown, as_json)


@app.command("roster")
def roster(
    folder: _Folder = Path("pki"),
    out: Annotated[
        Path | None, typer.Option(help="File to write (default: roster.json in --folder).")
    ] = None,
    epoch: Annotated[int, typer.Option(help="Number of this roster; it only goes up.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Write the roster: every site and the coordinator, with the keys they sign with.

    Give the same file to every member; parties with different rosters cannot complete a
    round together.

    \b
    Example:
      veilsum pki roster --epoch 1
    """
    from veilsum.pki.authority import CERTIFICATE_FILE, SIGNING_FOLDER
    from veilsum.pki.roster_file import build_roster, write_roster

    made = build_roster(folder / SIGNING_FOLDER, folder / CERTIFICATE_FILE, epoch=epoch)
    file = out or folder / "roster.json"
    write_roster(file, made)
    _show(
        {
            "file": str(file),
            "consortium": made.consortium,
            "epoch": made.epoch,
            "sites": list(made.sites),
            "hash": made.hash.hex(),
        },
        as_json,
    )


def _role(text: str) -> Role:
    for role in ROLES:
        if text == role:
            return role
    raise typer.BadParameter(f"a role must be one of {', '.join(ROLES)}, got {text!r}")


def _show(facts: dict[str, object], as_json: bool) -> None:
    if as_json:
        print_json(facts)
        return
    print_facts(
        (name, ", ".join(value) if isinstance(value, list) else value)
        for name, value in facts.items()
    )
