"""A coordinator in a process of its own, watched from outside, and the consortium around it.

Programs that measure a coordinator start it with this; peaks are the kernel's own accounting.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import veilsum
from veilsum.control import RunSpec, RunStatus
from veilsum.pki.authority import create_authority
from veilsum.pki.files import write_public
from veilsum.pki.identity import Identity
from veilsum.pki.issue import IssuedFiles, issue
from veilsum.pki.roster_file import build_roster
from veilsum.pki.roster_signing import SignedRoster
from veilsum.roster import Roster
from veilsum.transport.client import Connection
from veilsum.transport.endpoint import Endpoint
from veilsum.transport.operator import OperatorClient
from veilsum.transport.settings import CoordinatorSettings, LogSettings, OperatorSettings
from veilsum.transport.tls import load_signing_key, load_tls_identity
from veilsum.transport.tls_reload import ClientTls

MIB = 1 << 20
CONSORTIUM = "bench"


@dataclass(frozen=True)
class Consortium:
    """Certificates and keys of everybody, and the roster that all sites signed."""

    folder: Path
    hub: IssuedFiles
    operator: IssuedFiles
    sites: Mapping[str, IssuedFiles]
    roster: Roster

    @classmethod
    def of(cls, folder: Path, sites: Sequence[str]) -> Consortium:
        """Makes all files in a new folder."""
        authority = create_authority(folder / "authority", CONSORTIUM)
        hub = issue(authority, "coordinator", "hub", folder / "members")
        operator = issue(authority, "operator", "ann", folder / "members")
        issued = {site: issue(authority, "site", site, folder / "members") for site in sites}
        signed = SignedRoster(build_roster(authority.folder / "signing", hub.ca))
        for site, files in issued.items():
            assert files.signing_key is not None
            signed = signed.signed(site, load_signing_key(files.signing_key), None)
        write_public(folder / "roster.json", signed.to_bytes() + b"\n")
        return cls(folder, hub, operator, issued, signed.roster)

    def coordinator_settings(self, state: Path, **change: Any) -> CoordinatorSettings:
        """Of a coordinator with TLS that logs errors only."""
        assert self.hub.signing_key is not None
        return CoordinatorSettings(
            state_dir=state,
            roster=self.folder / "roster.json",
            signing_key=self.hub.signing_key,
            ca=self.hub.ca,
            tls_certificate=self.hub.tls_certificate,
            tls_key=self.hub.tls_key,
            log=LogSettings(level="error"),
            **change,
        )

    def endpoint(self, site: str, port: int) -> Endpoint:
        """As a site dials."""
        files = self.sites[site]
        paths = (files.ca, files.tls_certificate, files.tls_key)
        tls = ClientTls(paths, load_tls_identity(*paths, "site"))
        identity = Identity(CONSORTIUM, "site", site)
        return Endpoint(f"127.0.0.1:{port}", identity, tls, self.roster, veilsum.__version__)

    def operator_client(self, port: int) -> OperatorClient:
        """As an operator dials."""
        return OperatorClient(
            OperatorSettings(
                coordinator=f"127.0.0.1:{port}",
                ca=self.operator.ca,
                tls_certificate=self.operator.tls_certificate,
                tls_key=self.operator.tls_key,
            )
        )


class WatchedCoordinator:
    """A coordinator process. Use `with`; it is killed at the end.

    Attributes:
        port: where it listens.
        most_files: file descriptors that were open at once, as far as sample() saw.
    """

    def __init__(self, settings: CoordinatorSettings, folder: Path) -> None:
        self.state = settings.state_dir
        self._settings = folder / "coordinator.settings"
        self._settings.write_bytes(pickle.dumps(settings))
        self._log = folder / "coordinator.log"
        self.most_files = 0

    def __enter__(self) -> Self:
        package = str(Path(veilsum.__file__).parents[1])
        with open(self._log, "w") as log:
            self._process = subprocess.Popen(  # noqa: S603  this very program
                [sys.executable, __file__, str(self._settings)],
                env={**os.environ, "PYTHONPATH": package},
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the coordinator did not start: {self._log.read_text()}")
        self.port = int(line)
        self.idle_bytes = self.peak_bytes()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()
        if kind is not None:
            sys.stderr.write(self._log.read_text()[-4000:])

    def peak_bytes(self) -> int:
        """Most memory that was ever resident, pages of mapped files included (VmHWM)."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if "VmHWM" in line).split()[1]) << 10

    def processor_seconds(self) -> float:
        """Processor time that it has used, by the kernel's accounting."""
        return processor_seconds(self._process.pid)

    async def sample(self) -> None:
        """Counts open files until cancelled. The process is undumpable: only root may look."""
        while os.geteuid() == 0:
            self.most_files = max(self.most_files, len(os.listdir(f"/proc/{self._process.pid}/fd")))
            await asyncio.sleep(0.2)


async def join(consortium: Consortium, port: int, names: Sequence[str]) -> list[Connection]:
    """A connection for each site, some at a time."""
    joining = asyncio.Semaphore(32)

    async def one(name: str) -> Connection:
        async with joining:
            return await Connection(consortium.endpoint(name, port)).__aenter__()

    return list(await asyncio.gather(*map(one, names)))


def run_to_its_end(consortium: Consortium, port: int, spec: RunSpec, model: str) -> RunStatus:
    """Submits a run and waits.

    Args:
        model: name of a file in the coordinator's models folder.
    """
    with consortium.operator_client(port) as operator:
        run = operator.submit(spec, model)
        for _ in operator.watch(run.run_id):
            pass
        return operator.get(run.run_id)


def processor_seconds(process: int) -> float:
    """User and system time of all threads of a process so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def allow_files(needed: int) -> None:
    """Raises this process's own limit of open files.

    Raises:
        SystemExit: the system does not allow so many.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise SystemExit(f"{needed} open files are needed, the hard limit is {hard}")
    if soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def main() -> None:
    """Is the coordinator's process: settings in a file, the port on stdout."""
    from veilsum.transport.coordinator_app import run_coordinator

    def tell(port: int) -> None:
        sys.stdout.write(f"{port}\n")
        sys.stdout.flush()

    settings = pickle.loads(Path(sys.argv[1]).read_bytes())  # noqa: S301  as written above
    run_coordinator(settings, ready=tell)


if __name__ == "__main__":
    main()
