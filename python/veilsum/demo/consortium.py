"""Certificates, roster and configuration files of the demo's consortium.

The same files that `veilsum pki` makes and `veilsum coordinator` and `veilsum site` read: a
real consortium has each of them made where its key belongs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from veilsum.demo.data import Hospital
from veilsum.demo.folder import DemoFolder
from veilsum.demo.options import TASK_ID, DemoOptions
from veilsum.pki.authority import SIGNING_FOLDER, create_authority
from veilsum.pki.files import write_private
from veilsum.pki.issue import IssuedFiles, issue
from veilsum.pki.roster_file import build_roster, sign_roster, write_roster
from veilsum.roster import Roster
from veilsum.transport.settings import OperatorSettings
from veilsum.transport.tls import load_signing_key

NAME = "lung-study"
TRAINER = "veilsum.demo.trainer:make_trainer"
_HOST = "127.0.0.1"


@dataclass(frozen=True)
class Consortium:
    """Everybody's files."""

    folder: DemoFolder
    roster: Roster
    coordinator: IssuedFiles
    operator: IssuedFiles
    sites: Mapping[str, IssuedFiles]

    def operator_settings(self, port: int) -> OperatorSettings:
        """How the demo itself calls the coordinator."""
        files = self.operator
        return OperatorSettings(
            coordinator=f"{_HOST}:{port}",
            ca=files.ca,
            tls_certificate=files.tls_certificate,
            tls_key=files.tls_key,
        )


def make_consortium(folder: DemoFolder, sites: Sequence[Hospital]) -> Consortium:
    """Makes the authority, a certificate for every member, and the roster that all sites sign."""
    authority = create_authority(folder.authority, NAME, days=30)
    coordinator = issue(authority, "coordinator", "coordinator", folder.members, days=30)
    operator = issue(authority, "operator", "operator", folder.members, days=30)
    members = {
        site.name: issue(authority, "site", site.name, folder.members, region=site.region, days=30)
        for site in sites
    }
    roster = build_roster(folder.authority / SIGNING_FOLDER, coordinator.ca)
    write_roster(folder.roster, roster)
    for name, files in members.items():
        if files.signing_key is not None:
            sign_roster(folder.roster, name, load_signing_key(files.signing_key))
    return Consortium(folder, roster, coordinator, operator, members)


def rounding_seed(seed: int, site: str) -> bytes:
    """32 bytes that fix a site's stochastic rounding.

    A real site leaves this out of its site.toml and draws it from the operating system: who
    knows it learns a little more about an update from its encoding. The demo has to encode
    the same updates a second time, for its proof.
    """
    return hashlib.sha256(f"veilsum demo rounding {seed} {site}".encode()).digest()


def write_coordinator_toml(consortium: Consortium) -> Path:
    """The coordinator's configuration; it takes a free port."""
    files, folder = consortium.coordinator, consortium.folder
    return _write_toml(
        files.folder / "coordinator.toml",
        {
            "listen": f"{_HOST}:0",
            "state_dir": folder.state,
            "roster": folder.roster,
            **_keys(files),
            "threads": 2,
            # Here nobody is cut off but the site that is killed, and everybody looks on.
            "reconnect_s": 2.0,
        },
        {"log": {"format": "json"}},
    )


def write_site_toml(consortium: Consortium, site: str, port: int, options: DemoOptions) -> Path:
    """A site's configuration."""
    files, folder = consortium.sites[site], consortium.folder
    return _write_toml(
        files.folder / "site.toml",
        {
            "site": site,
            "coordinator": f"{_HOST}:{port}",
            "roster": folder.roster,
            "roster_hash": consortium.roster.hash.hex(),
            **_keys(files),
            "trainer": TRAINER,
            "rounding_seed": rounding_seed(options.seed, site).hex(),
            "threads": 1,
        },
        {
            "trainer_settings": {
                "site": site,
                "sites": options.sites,
                "notebook": str(folder.notes.absolute()),
            },
            "bounds": {"max_epochs": options.task().epochs, "plain_rounds": options.plain},
            "policy": {"task_ids": [TASK_ID]},
            # JSON, because the demo reads from it what left the site.
            "log": {"format": "json"},
        },
    )


def _keys(files: IssuedFiles) -> dict[str, Path | None]:
    return {
        "ca": files.ca,
        "tls_certificate": files.tls_certificate,
        "tls_key": files.tls_key,
        "signing_key": files.signing_key,
    }


def _write_toml(
    file: Path, settings: Mapping[str, Any], tables: Mapping[str, Mapping[str, Any]]
) -> Path:
    lines = _toml_lines(settings)
    for name, table in tables.items():
        lines += ["", f"[{name}]", *_toml_lines(table)]
    write_private(file, "\n".join([*lines, ""]).encode())
    return file


def _toml_lines(table: Mapping[str, Any]) -> list[str]:
    # JSON's texts, numbers, booleans and lists of them are TOML's as well.
    return [
        f"{key} = {json.dumps(str(value.absolute()) if isinstance(value, Path) else value)}"
        for key, value in table.items()
    ]
