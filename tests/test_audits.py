"""What a coordinator keeps and serves so that others can check its sums, and for how long."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.federation import Fault, Federation, small_model
from veilsum.cli import main
from veilsum.control import RoundId, RunSpec
from veilsum.coordinator.effects import DropAudit, PublishAudit, SaveRound
from veilsum.errors import ConfigError, DecodeError
from veilsum.secagg.transcript_file import Transcript
from veilsum.secagg.verifying import Engine, verify
from veilsum.transport.audits import Audits, pieces, write_transcript

SITES = ("lyon", "oslo", "porto", "quito")


def held(**options: object) -> Federation:
    """A run of two masked rounds whose coordinator keeps what proves its sums."""
    federation = Federation(SITES, audits=True, **options)  # type: ignore[arg-type]
    federation.submit("run-1", SPEC, small_model())
    federation.run("run-1")
    return federation


SPEC = RunSpec(
    task_id="diagnosis", rounds=2, masked=True, min_sites=3, clip=1.0, weight_cap=100, colluders=1
)


def digests(federation: Federation) -> dict[RoundId, str]:
    return {
        effect.record.round: effect.record.digest
        for effect in federation.effects
        if isinstance(effect, SaveRound)
    }


def test_every_round_has_a_transcript_that_verifies_to_its_digest():
    federation = held()

    assert len(federation.transcripts) == 2
    for round_id, data in federation.transcripts.items():
        transcript = Transcript(data, roster=federation.roster)
        result = verify(transcript, Engine(bytes(32)), per_stream=None)
        assert result.digest == digests(federation)[round_id]
        assert (transcript.plan.run_id, transcript.plan.round_number) == ("run-1", round_id.number)


def test_without_being_asked_a_coordinator_keeps_nothing():
    federation = Federation(SITES)
    federation.submit("run-1", SPEC, small_model())
    federation.run("run-1")

    assert not any(isinstance(effect, PublishAudit) for effect in federation.effects)
    assert not any(isinstance(effect, DropAudit) for effect in federation.effects)


def test_what_proves_a_sum_is_forgotten_once_the_sites_have_acknowledged_it():
    federation = held()

    published = [effect for effect in federation.effects if isinstance(effect, PublishAudit)]
    assert len(published) == 2
    for effect in published:
        with pytest.raises(ConfigError, match="wiped"):
            list(effect.audited.sections())
        with pytest.raises(ConfigError, match="no sum that this site could check"):
            federation.audits.get(effect.round, "lyon")


def test_a_round_without_a_result_leaves_nothing_to_check():
    """Seeds of an attempt that failed would, with those of the next, be both of one site."""
    lost = {site: Fault(1, "unmask") for site in ("oslo", "lyon")}
    federation = Federation(SITES, audits=True, faults=lost)
    federation.submit("run-1", SPEC, small_model())
    assert federation.run("run-1").state == "aborted"

    assert not federation.transcripts


def published(federation: Federation) -> PublishAudit:
    """One whose seeds are still there."""
    found: list[PublishAudit] = []

    def stop(effect: PublishAudit) -> None:
        found.append(effect)

    federation.audits.put = stop  # type: ignore[method-assign]
    federation.submit("run-2", SPEC, small_model())
    while not found:
        assert federation.step()
    return found[0]


@pytest.fixture
def fresh() -> tuple[Federation, PublishAudit]:
    federation = Federation(SITES, audits=True)
    return federation, published(federation)


def test_a_sum_is_served_to_the_sites_of_its_round_until_it_is_dropped(fresh):
    _, effect = fresh
    audits = Audits()
    audits.put(effect)

    assert audits.get(effect.round, "lyon") is effect.audited
    for round_id, site in (
        (effect.round, "zurich"),
        (RoundId("run-2", 2, 0), "lyon"),
        (RoundId("run-2", 1, 1), "lyon"),
        (RoundId("run-1", 1, 0), "lyon"),
    ):
        with pytest.raises(ConfigError, match="no sum that this site could check"):
            audits.get(round_id, site)
    audits.drop("run-2")
    with pytest.raises(ConfigError, match="no sum that this site could check"):
        audits.get(effect.round, "lyon")
    with pytest.raises(ConfigError, match="wiped"):
        list(effect.audited.sections())


def test_a_chunk_is_asked_for_once(fresh):
    with pytest.raises(DecodeError, match="asked for twice"):
        next(pieces(fresh[1].audited, [(1, 0), (0, 0), (1, 0)]))


def test_what_is_passed_over_is_not_read_at_one_go(fresh, monkeypatch):
    monkeypatch.setattr("veilsum.transport.audits.PIECE_BYTES", 1000)
    whole = b"".join(pieces(fresh[1].audited, [(1, 0)]))
    *passed, rest = pieces(fresh[1].audited, [(1, 0)], len(whole) - 1)
    assert len(passed) > 3
    assert set(passed) == {b""}
    assert rest == whole[-1:]


def test_a_part_comes_in_pieces_that_make_it_up(fresh, monkeypatch):
    federation, effect = fresh
    monkeypatch.setattr("veilsum.transport.audits.PIECE_BYTES", 1000)
    spec = Transcript(federation.transcripts[effect.round]).plan.ring
    chunks = [(spec.streams[1], 0)]
    found = list(pieces(effect.audited, [(1, 0)]))

    assert b"".join(found) == b"".join(map(bytes, effect.audited.sections(chunks)))
    assert len(found) > 3
    assert max(map(len, found)) < 2000
    whole = b"".join(found)
    for offset in (1, 999, 1000, len(found[0]), len(whole) // 2, len(whole) - 1, len(whole)):
        assert b"".join(pieces(effect.audited, [(1, 0)], offset)) == whole[offset:]
    with pytest.raises(DecodeError, match="2 bytes behind its end"):
        list(pieces(effect.audited, [(1, 0)], len(whole) + 2))


@pytest.mark.parametrize("asked", [(3, 0), (1, 1), (1, 2**63)])
def test_a_chunk_that_a_sum_has_not_is_not_served(fresh, asked):
    with pytest.raises(DecodeError, match="has no chunk"):
        list(pieces(fresh[1].audited, [(0, 0), asked]))


def test_a_transcript_on_disk_is_private_whole_and_verifies(fresh, tmp_path: Path, capsys):
    federation, effect = fresh
    folder = tmp_path / "transcripts"
    stale = folder / "run-2" / "round-1-0.part"
    for made in (folder, stale.parent):
        made.mkdir(mode=0o700)
    stale.write_bytes(b"of a process that was killed")

    file = write_transcript(folder, effect)

    assert file == folder / "run-2" / "round-1-0.vst"
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.read_bytes() == federation.transcripts[effect.round]
    assert [one.name for one in file.parent.iterdir()] == [file.name]
    assert main.exit_code(["verify", str(file), "--tiles", "all", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["run"] == "run-2"


def test_a_folder_that_others_may_enter_gets_no_transcript(fresh, tmp_path: Path):
    (tmp_path / "open").mkdir(mode=0o755)
    with pytest.raises(ConfigError):
        write_transcript(tmp_path / "open", fresh[1])
    assert not list((tmp_path / "open").iterdir())
