"""`veilsum pki`: the consortium's certificates and roster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from veilsum.cli.exits import FAILED
from veilsum.cli.output import JsonOption, print_facts, print_json
from veilsum.pki.identity import ROLES, Role

if TYPE_CHECKING:
    from veilsum.pki.roster_signing import SignedRoster
    from veilsum.roster import Roster

app = typer.Typer(
    help="Make the consortium's certificate authority, certificates and roster.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_Folder = Annotated[Path, typer.Option("--folder", help="The authority's private folder.")]
_RosterFile = Annotated[Path, typer.Argument(help="The roster file.")]
_Previous = Annotated[
    Path | None, typer.Option(help="Roster of the epoch before, unless this is the first.")
]


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
    previous: _Previous = None,
    as_json: JsonOption = False,
) -> None:
    """Write the roster: every site and the coordinator, with the keys they sign with.

    It holds once its sites have signed it, all of them for a consortium's first roster, and
    for a later one a quorum of those in the roster before (--previous). A member that the new
    one leaves out is revoked.

    \b
    Example:
      veilsum pki roster
      veilsum pki roster --epoch 2 --previous pki/roster.json --out pki/roster-2.json
    """
    from veilsum.pki.authority import CERTIFICATE_FILE, SIGNING_FOLDER
    from veilsum.pki.roster_file import build_roster, write_roster
    from veilsum.pki.roster_signing import SignedRoster

    before = _previous_roster(previous)
    made = build_roster(
        folder / SIGNING_FOLDER, folder / CERTIFICATE_FILE, epoch=epoch, previous=before
    )
    file = out or folder / "roster.json"
    write_roster(file, made)
    _show(_roster_facts(file, SignedRoster(made), before), as_json)


@app.command("sign-roster")
def sign_roster(
    file: _RosterFile,
    site: Annotated[str, typer.Option(help="Name of the site that signs.")],
    key: Annotated[Path, typer.Option(help="The site's signing.key.")],
    previous: _Previous = None,
    as_json: JsonOption = False,
) -> None:
    """Sign a roster as a site: these are the members it will sum its updates with.

    Look at the roster first (`veilsum inspect`), and sign one per epoch.

    \b
    Example:
      veilsum pki sign-roster roster.json --site lyon --key site-lyon/signing.key
    """
    from veilsum.pki.roster_file import sign_roster as sign
    from veilsum.transport.tls import load_signing_key

    before = _previous_roster(previous)
    signed = sign(file, site, load_signing_key(key), before)
    _show(_roster_facts(file, signed, before), as_json)


@app.command("check-roster")
def check_roster(
    file: _RosterFile,
    previous: _Previous = None,
    pin: Annotated[
        list[Path] | None,
        typer.Option(help="A site.toml that gets the roster's hash; repeatable."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check that enough members signed a roster, and pin it in a site's configuration.

    A site takes part with the roster whose hash it has pinned, and with no other.

    \b
    Example:
      veilsum pki check-roster roster.json --pin site.toml
    """
    from veilsum.pki.pinning import pin_roster
    from veilsum.pki.roster_file import read_signed

    before, signed = _previous_roster(previous), read_signed(file)
    made = signed.check(before)
    for config in pin or ():
        pin_roster(config, made)
    _show(_roster_facts(file, signed, before), as_json)


@app.command("renew")
def renew(
    member: Annotated[Path, typer.Argument(help="The member's folder, as issue made it.")],
    folder: _Folder = Path("pki"),
    days: Annotated[int, typer.Option(help="How long the certificate is valid.")] = 365,
    as_json: JsonOption = False,
) -> None:
    """Replace a member's TLS certificate and key by new ones; its signing key stays.

    A coordinator that runs takes them up by itself once they are in its folder.

    \b
    Example:
      veilsum pki renew pki/coordinator-hub
    """
    from veilsum.pki.authority import load_authority
    from veilsum.pki.renewal import renew as renew_files

    made = renew_files(load_authority(folder), member, days=days)
    _show(
        {
            "folder": str(member),
            "serial": f"{made.serial_number:x}",
            "valid_until": made.not_valid_after_utc.isoformat(),
        },
        as_json,
    )


@app.command("revoke")
def revoke(
    whom: Annotated[
        str,
        typer.Argument(
            help="A certificate's file or serial number, or a member's identity URI, which means "
            "all of its certificates."
        ),
    ],
    listed: Annotated[Path, typer.Option("--list", help="The list, made if there is none.")],
    remark: Annotated[str, typer.Option(help="Written behind the entry.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Add a certificate to the list of those that are not to be believed any more.

    The coordinator whose `revoked` names the list ends the member's calls within seconds and takes
    no more. A site that is to leave the consortium for good needs a new roster besides.

    \b
    Example:
      veilsum pki revoke veilsum://lung-study/site/lyon --list revoked --remark "stolen laptop"
      veilsum pki revoke site-lyon/tls.pem --list revoked
    """
    from veilsum.pki.authority import load_certificate
    from veilsum.pki.revoked_file import parse_entry
    from veilsum.pki.revoked_file import revoke as add

    is_file = Path(whom).is_file()
    entry = load_certificate(Path(whom)).serial_number if is_file else parse_entry(whom)
    added = add(listed, entry, remark)
    shown = f"{entry:x}" if isinstance(entry, int) else entry
    _show({"list": str(listed), "revoked": shown, "added": added}, as_json)


@app.command("check-evidence")
def check_evidence(
    file: Annotated[Path, typer.Argument(help="A file of evidence (.vse).")],
    roster_file: Annotated[Path, typer.Option("--roster", help="The roster of the round.")],
    as_json: JsonOption = False,
) -> None:
    """Check what evidence shows: that a member broke the protocol, with nothing but the roster.

    The signatures in it are the accused's own. Exit code 1 if it shows nothing.

    \b
    Example:
      veilsum pki check-evidence state/evidence/run-1/1-0-1.vse --roster roster.json
    """
    from veilsum.cli.evidence import evidence_facts
    from veilsum.pki.roster_file import read_signed

    shown, facts = evidence_facts(file, read_signed(roster_file).roster)
    _show(facts, as_json)
    if not shown:
        raise typer.Exit(FAILED)


def _previous_roster(file: Path | None) -> Roster | None:
    from veilsum.pki.roster_file import read_signed

    return None if file is None else read_signed(file).roster


def _roster_facts(file: Path, signed: SignedRoster, previous: Roster | None) -> dict[str, object]:
    made = signed.roster
    return {
        "file": str(file),
        "consortium": made.consortium,
        "epoch": made.epoch,
        "sites": list(made.sites),
        "hash": made.hash.hex(),
        "signed_by": sorted(signed.signatures),
        "signatures_missing": signed.missing(previous),
    }


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
