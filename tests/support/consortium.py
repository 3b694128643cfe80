"""A real consortium on disk: authority, certificates, roster, and settings that use them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from veilsum.pki.authority import Authority, create_authority
from veilsum.pki.issue import IssuedFiles, issue
from veilsum.pki.roster_file import build_roster, load_roster, sign_roster, write_roster
from veilsum.roster import Roster
from veilsum.transport.settings import (
    CoordinatorSettings,
    LogSettings,
    OperatorSettings,
    SiteSettings,
)
from veilsum.transport.tls import load_signing_key

CONSORTIUM = "test"


@dataclass(frozen=True)
class Consortium:
    """Files of an authority, its members, and their roster."""

    folder: Path
    authority: Authority
    hub: IssuedFiles
    operator: IssuedFiles
    sites: Mapping[str, IssuedFiles]
    roster_file: Path

    @property
    def roster(self) -> Roster:
        return load_roster(self.roster_file)

    def coordinator_settings(self, state_dir: Path, **change: Any) -> CoordinatorSettings:
        fields = {
            "state_dir": state_dir,
            "roster": self.roster_file,
            "signing_key": self.hub.signing_key,
            "ca": self.hub.ca,
            "tls_certificate": self.hub.tls_certificate,
            "tls_key": self.hub.tls_key,
            "threads": 1,
            "log": LogSettings(level="error"),
            **change,
        }
        return CoordinatorSettings(**fields)

    def site_settings(self, site: str, port: int, **change: Any) -> SiteSettings:
        files = self.sites[site]
        fields = {
            "site": site,
            "coordinator": f"127.0.0.1:{port}",
            "roster": self.roster_file,
            "roster_hash": self.roster.hash.hex(),
            "signing_key": files.signing_key,
            "trainer": "support.tiny_trainer:make",
            "ca": files.ca,
            "tls_certificate": files.tls_certificate,
            "tls_key": files.tls_key,
            "threads": 1,
            "ledger": self.roster_file.parent / f"ledger-{site}",
            "egress": self.roster_file.parent / f"egress-{site}.vsx",
            "log": LogSettings(level="error"),
            **change,
        }
        return SiteSettings(**fields)

    def operator_settings(self, port: int, **change: Any) -> OperatorSettings:
        fields = {
            "coordinator": f"127.0.0.1:{port}",
            "ca": self.operator.ca,
            "tls_certificate": self.operator.tls_certificate,
            "tls_key": self.operator.tls_key,
            **change,
        }
        return OperatorSettings(**fields)


def make_consortium(folder: Path, sites: Sequence[str]) -> Consortium:
    """Makes all files in a new folder."""
    authority = create_authority(folder / "authority", CONSORTIUM)
    members = folder / "members"
    hub = issue(authority, "coordinator", "hub", members)
    operator = issue(authority, "operator", "ann", members)
    issued = {site: issue(authority, "site", site, members) for site in sites}
    roster_file = folder / "roster.json"
    write_roster(roster_file, build_roster(authority.folder / "signing", hub.ca))
    for site, files in issued.items():
        assert files.signing_key is not None
        sign_roster(roster_file, site, load_signing_key(files.signing_key))
    return Consortium(folder, authority, hub, operator, issued, roster_file)
