"""Evidence as bytes: what is taken, what is refused, and that nothing made up convicts anyone."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from support.faults import wrong_answer
from support.secagg import NAMES, Federation, make_plan
from veilsum import secagg
from veilsum.cli import main
from veilsum.cli.inspect import examine
from veilsum.errors import DecodeError
from veilsum.pki.roster_file import write_roster
from veilsum.secagg.evidence import MAGIC, MAX_EVIDENCE_BYTES, Evidence, Fault
from veilsum.secagg.wire import Writer
from veilsum.transport import evidence_files, site_runner
from veilsum.transport.logs import Log
from veilsum.transport.outgoing import Outgoing

BAD = NAMES[1]
PLAN = make_plan(4, colluders=1, share_threshold=2)
ROSTER = PLAN.roster


@pytest.fixture(scope="module")
def real() -> bytes:
    federation = Federation(PLAN)
    answer = federation.hold("unmask-shares", origin=BAD)
    federation.deliver(BAD, "", wrong_answer(answer, NAMES[3]))
    (blamed,) = [e for e in federation.coordinator_effects if isinstance(e, secagg.Blamed)]
    return blamed.evidence


def test_evidence_survives_its_encoding(real):
    assert Evidence.from_bytes(real).to_bytes() == real
    assert secagg.check_evidence(real, ROSTER) == secagg.Guilty(BAD, Fault.WRONG_SHARE)


def test_no_changed_byte_convicts_anyone_else_or_of_anything_else(real):
    """Most break a signature or a hash. Those that do not may leave the verdict as it is."""
    rng = np.random.default_rng(3)
    places = sorted({*range(120), *(int(at) for at in rng.integers(0, len(real), 400))})
    verdicts = set()
    for at in places:
        changed = bytearray(real)
        changed[at] ^= 1 << int(rng.integers(8))
        verdict = secagg.check_evidence(bytes(changed), ROSTER)
        assert isinstance(verdict, secagg.Invalid) or verdict == secagg.Guilty(
            BAD, Fault.WRONG_SHARE
        ), at
        verdicts.add(type(verdict))
    assert secagg.Invalid in verdicts


def test_evidence_of_one_fault_is_none_of_another_and_of_nobody_else(real):
    evidence = Evidence.from_bytes(real)
    for fault in Fault:
        for accused in ("", *NAMES):
            if (fault, accused) != (Fault.WRONG_SHARE, BAD):
                made_up = replace(evidence, fault=fault, accused=accused)
                verdict = secagg.check_evidence(made_up.to_bytes(), ROSTER)
                assert isinstance(verdict, secagg.Invalid), (fault, accused)


def test_any_prefix_and_any_other_roster_show_nothing(real):
    for size in (0, 3, 4, 5, 40, len(real) // 2, len(real) - 1):
        assert isinstance(secagg.check_evidence(real[:size], ROSTER), secagg.Invalid)
    assert isinstance(secagg.check_evidence(real + b"\0", ROSTER), secagg.Invalid)
    strangers = secagg.make_consortium(NAMES).roster
    assert isinstance(secagg.check_evidence(real, strangers), secagg.Invalid)


def test_sizes_are_bounded_before_anything_is_taken_in():
    head = Writer().raw(MAGIC).integer(Fault.BAD_KEY, 1).text(BAD).blob(b"")
    many = head.integer(60_000, 2).bytes()
    large = Writer().raw(MAGIC).integer(1, 1).text(BAD).blob(b"").integer(1, 2)
    large = large.integer(2**31, 4).bytes()
    for data, reason in ((many, "60000 entries"), (large, "at most 262144 are allowed")):
        with pytest.raises(DecodeError, match=reason):
            Evidence.from_bytes(data)
    with pytest.raises(DecodeError, match="at most"):
        Evidence.from_bytes(bytes(MAX_EVIDENCE_BYTES + 1))
    with pytest.raises(DecodeError, match="no fault 200"):
        Evidence.from_bytes(MAGIC + b"\xc8")
    with pytest.raises(DecodeError, match="no evidence of this version"):
        Evidence.from_bytes(b"VSE0")


def test_every_fault_has_a_check_and_words():
    assert set(secagg.FAULT_TEXTS) == set(Fault)
    for fault in Fault:
        empty = Evidence(fault, BAD, PLAN.to_bytes(), ())
        assert isinstance(secagg.check_evidence(empty.to_bytes(), ROSTER), secagg.Invalid)


# --- for people -----------------------------------------------------------------------


def test_a_file_of_evidence_is_checked_with_a_roster(real, tmp_path: Path, capsys):
    roster, file, worse = tmp_path / "roster.json", tmp_path / "a.vse", tmp_path / "b.vse"
    write_roster(roster, ROSTER)
    file.write_bytes(real)
    worse.write_bytes(real[:-1])

    def checked(path: Path) -> tuple[int, dict[str, object]]:
        code = main.exit_code(
            ["pki", "check-evidence", str(path), "--roster", str(roster), "--json"]
        )
        return code, json.loads(capsys.readouterr().out)

    code, shown = checked(file)
    assert code == 0
    assert (shown["shows"], shown["fault"]) == (f"site {BAD}", "WRONG_SHARE")
    code, shown = checked(worse)
    assert (code, shown["shows"]) == (1, "nothing")


def test_inspect_says_what_evidence_claims_and_that_it_did_not_verify_it(real, tmp_path: Path):
    file = tmp_path / "a.vse"
    file.write_bytes(real)

    facts = examine(file)

    assert (facts["kind"], facts["fault"], facts["accused"]) == (
        "evidence",
        "WRONG_SHARE",
        f"site {BAD}",
    )
    assert facts["verified"] == "no: veilsum pki check-evidence"


def test_a_site_keeps_evidence_beside_its_ledger_and_a_full_folder_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    settings = SimpleNamespace(site=BAD, ledger=tmp_path / "ledger", max_model_bytes=1)
    settings.ledger.mkdir(mode=0o700)
    monkeypatch.setattr(evidence_files, "_MOST", 2)

    async def main() -> None:
        outgoing, log = Outgoing(None, Log("site")), Log("site")
        runner = site_runner.SiteRunner(None, None, settings, outgoing, log)
        for data in (b"one", b"two", b"three"):
            runner._keep(data)

    asyncio.run(main())

    folder = settings.ledger / "evidence"
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == {
        "coordinator-1.vse": b"one",
        "coordinator-2.vse": b"two",
    }
