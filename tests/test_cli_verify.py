"""`veilsum verify`: a transcript, a roster and nothing else."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from support.audits import AuditedRound
from support.secagg import consortium, make_contributions, make_plan, small_arrays
from veilsum import secagg
from veilsum.cli import main
from veilsum.model import ModelLayout
from veilsum.pki.roster_signing import SignedRoster

SIZE = 9000


def held(**options: object) -> AuditedRound:
    layout = ModelLayout.from_arrays(small_arrays(0, SIZE))
    plan = make_plan(4, layout=layout, chunk_coordinates=4096)
    contributions = make_contributions(plan, lambda seed: small_arrays(seed, SIZE))
    return AuditedRound(plan, contributions=contributions, **options)


def signed_by_all(members: secagg.Consortium) -> bytes:
    signed = SignedRoster(members.roster)
    for site, key in members.site_keys.items():
        signed = signed.signed(site, key, None)
    return signed.to_bytes()


@pytest.fixture(scope="module")
def audited() -> AuditedRound:
    return held(lost=["basel"])


@pytest.fixture
def transcript(audited: AuditedRound, tmp_path: Path) -> Path:
    file = tmp_path / "round.vst"
    file.write_bytes(audited.transcript())
    return file


@pytest.fixture
def roster(tmp_path: Path) -> Path:
    file = tmp_path / "roster.json"
    file.write_bytes(signed_by_all(consortium()))
    return file


def run(*arguments: object) -> int:
    return main.exit_code(["verify", *map(str, arguments)])


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("verify opened a socket")

    monkeypatch.setattr(socket, "socket", refuse)


@pytest.mark.parametrize(
    ("tiles", "backend", "checked"), [("64", "cpu", 5), ("1", "cpu", 3), ("all", "emu", 5)]
)
@pytest.mark.usefixtures("no_network")
def test_a_transcript_is_verified(audited, transcript, roster, tiles, backend, checked, capsys):
    arguments = (transcript, "--roster", roster, "--tiles", tiles, "--backend", backend, "--json")
    assert run(*arguments) == 0

    said = json.loads(capsys.readouterr().out)
    assert said["digest"] == audited.federation.result.digest
    assert said["total_weight"] == audited.federation.result.total_weight
    assert said["sites"] == list(audited.federation.result.sites)
    assert said["dropped"] == ["basel"]
    assert (said["chunks"], said["chunks_checked"]) == (5, checked)
    assert said["roster_given"] is True
    assert said["roster"] == consortium().roster.hash.hex()


def test_people_read_the_digest_and_whose_roster_it_was(audited, transcript, capsys):
    assert run(transcript) == 0

    shown = capsys.readouterr().out
    assert audited.federation.result.digest in shown
    assert "roster given    no" in shown


def test_inspect_says_what_a_transcript_is_of_and_that_its_sum_was_not_checked(transcript, capsys):
    assert main.exit_code(["inspect", str(transcript), "--json"]) == 0

    said = json.loads(capsys.readouterr().out)
    assert (said["kind"], said["chunks"], said["sum_checked"]) == ("transcript", 5, False)
    assert said["dropped"] == ["basel"]
    damaged = transcript.with_name("damaged.vst")
    damaged.write_bytes(transcript.read_bytes()[:-1])
    assert main.exit_code(["inspect", str(damaged)]) == 1


def test_the_first_wrong_chunk_is_named_and_the_exit_code_is_1(tmp_path, roster, capsys):
    def tamper(total):
        total._words[1][4096] += total._words[1].dtype.type(1)
        total._words[1][8192] += total._words[1].dtype.type(1)

    file = tmp_path / "wrong.vst"
    file.write_bytes(held(tamper=tamper).transcript())
    for tiles in ("all", "64"):
        assert run(file, "--roster", roster, "--tiles", tiles) == 1
        said = capsys.readouterr()
        assert "chunk 1 of stream 1 of the sum is not the sum of the updates" in said.err
        assert not said.out


def test_a_transcript_of_other_members_is_refused(transcript, tmp_path, capsys):
    other = secagg.make_consortium(consortium().roster.sites)
    file = tmp_path / "other.json"
    file.write_bytes(signed_by_all(other))

    assert run(transcript, "--roster", file) == 1
    assert "is of roster" in capsys.readouterr().err


@pytest.mark.parametrize("data", [b"", b"VST", b"VLC1" + bytes(100)])
def test_what_is_no_transcript_is_refused(data, tmp_path, capsys):
    file = tmp_path / "no.vst"
    file.write_bytes(data)

    assert run(file) == 1
    assert "error:" in capsys.readouterr().err


def test_a_file_that_is_not_there_is_an_error(tmp_path, capsys):
    assert run(tmp_path / "none.vst") == 1
    assert "cannot read" in capsys.readouterr().err


@pytest.mark.parametrize("tiles", ["0", "-1", "some", "", "1.5"])
def test_a_number_of_chunks_is_one_or_all(transcript, tiles, capsys):
    assert run(transcript, f"--tiles={tiles}") == 2
    assert "'all'" in capsys.readouterr().err


def test_a_device_sums_all_or_nothing(transcript, capsys):
    assert run(transcript, "--backend", "emu") == 2
    assert "--tiles all" in capsys.readouterr().err
