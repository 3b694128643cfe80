"""T20: whoever takes the coordinator's disk, or a site's, finds no seed, key or share on it.

At every message of a round the folder of the coordinator (database, checkpoints, spool with the
uploads), the sites' ledgers and egress ledgers are copied, as a thief would find them, and searched
for every secret of the round; so is the log of all processes at level debug. In the variants a
process writes down what it drew.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.dumped_round import SITES
from support.memory_scan import Scanner
from support.secrets_of_round import hold


def artefacts(folder: Path) -> Iterator[Path]:
    """Everything that a round leaves on disks, at every moment it was copied."""
    yield folder / "log"
    yield from (path for path in (folder / "disk").rglob("*") if path.is_file())


def found(folder: Path, secrets: dict[str, bytes]) -> dict[str, set[str]]:
    """Kind of artefact -> what is in it."""
    scanner = Scanner(secrets)
    results: dict[str, set[str]] = {}
    for path in artefacts(folder):
        results.setdefault(path.name.split("-")[0], set()).update(
            scanner.found_in(path.read_bytes())
        )
    return results


def test_what_a_process_writes_down_is_found_in_logs_and_folders(tmp_path: Path) -> None:
    leaked = found(tmp_path, hold(tmp_path, "log", "spool", "no dump"))

    for site in SITES:
        assert f"sk_chan of {site}, hex" in leaked["log"]
        assert f"sk_chan of {site}, base64" in leaked["plant"]


@pytest.mark.parametrize("outcome", ["completed", "abort"])
def test_no_secret_is_on_any_disk_at_any_moment_of_a_round(tmp_path: Path, outcome: str) -> None:
    results = found(tmp_path, hold(tmp_path, outcome, "no dump"))

    assert {kind: secrets for kind, secrets in results.items() if secrets} == {}
    # The thief did look where there was something to take.
    assert {"state.db", "ledger.vsl", "ledger.key", "log"} <= results.keys()
    if outcome == "completed":
        uploads = {path.name for path in artefacts(tmp_path) if path.suffix == ".update"}
        assert len(uploads) == len(SITES) - 1
