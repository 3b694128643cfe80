"""Disks that fail under a coordinator: it says so, and never sums what was not sent."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from support.chaos import Case, Scenario, as_undisturbed, failures
from support.disk_faults import Fault, make_writable
from support.lives import Outcome
from support.site_lives import Step

SLOW = pytest.mark.slow


def committed(state: Path) -> list[Path]:
    """Files of the spool whose updates count."""
    with closing(sqlite3.connect(f"file:{state / 'state.db'}?mode=ro", uri=True)) as database:
        sites = database.execute("SELECT site FROM log WHERE kind = 'update'").fetchall()
    files = (state / "spool").glob("*.update")
    return [file for file in files if any(site.encode() in file.read_bytes() for (site,) in sites)]


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def change(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def spoil(how: Callable[[Path], None], state: Path) -> Path:
    file, *_ = committed(state)
    how(file)
    return state


def a_round_says_what_was_lost(case: Case, scenario: Scenario, outcome: Outcome) -> Iterator[str]:
    """The attempt fails for it, and another one is held or the run ends."""
    del case, scenario
    failed = [record.reason for record in outcome.status.rounds if not record.completed]
    if not any("in the spool" in reason for reason in (*failed, outcome.status.reason)):
        yield f"nobody is told: {outcome.status.state}, {failed}"


@pytest.mark.parametrize(
    "how", [change, pytest.param(cut, marks=SLOW), pytest.param(Path.unlink, marks=SLOW)]
)
def test_an_update_that_is_damaged_between_two_lives_is_not_summed(
    case: Case, how: Callable[[Path], None], tmp_path: Path
) -> None:
    scenario = Scenario([Step("update.kept", 2)], meanwhile=partial(spoil, how))
    assert asyncio.run(failures(case, tmp_path, [scenario], a_round_says_what_was_lost)) == {}


# --- full and read-only disks -----------------------------------------------------------


def it_says(text: str, hint: str) -> Callable[[Case, Scenario, Outcome], Iterator[str]]:
    """The first life ends with an error that says so, and all ends well."""

    def judge(case: Case, scenario: Scenario, outcome: Outcome) -> Iterator[str]:
        said, code = outcome.lives[0].failure, outcome.lives[0].process.exitcode
        if code != 1 or text not in said or hint not in said:
            yield f"it ended {code} and said {said!r}"
        yield from as_undisturbed(case, scenario, outcome)

    return judge


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("database.begin", "cannot write"),
        *(
            pytest.param(f"{what}.begin", "what must last cannot be written", marks=SLOW)
            for what in ("sum", "model", "receipt", "a result's link")
        ),
    ],
)
def test_a_full_disk_stops_a_coordinator_which_goes_on_when_there_is_room(
    masked: Case, what: str, says: str, tmp_path: Path
) -> None:
    occurrence = 12 if what == "database.begin" else 2
    scenario = Scenario([Fault("full", (what, occurrence))])
    judge = it_says(says, "start the coordinator again: its runs go on")
    assert asyncio.run(failures(masked, tmp_path, [scenario], judge)) == {}


def it_waits_or_says(case: Case, scenario: Scenario, outcome: Outcome) -> Iterator[str]:
    """What does not fit on the disk meanwhile may be more than an upload."""
    first = outcome.lives[0]
    if len(outcome.lives) > 1 and (first.process.exitcode, first.failure[:12]) != (
        1,
        "cannot write",
    ):
        yield f"it ended {first.process.exitcode} and said {first.failure!r}"
    yield from as_undisturbed(case, scenario, outcome)


@SLOW
def test_uploads_wait_for_room_in_the_spool(case: Case, tmp_path: Path) -> None:
    faults = [
        Fault("full", ("spool.create", 2), end=("spool.create", 8)),
        Fault("full", ("spool.chunks", 2), end=("spool.chunks", 7)),
    ]
    scenarios = [Scenario([fault]) for fault in faults]
    assert asyncio.run(failures(case, tmp_path, scenarios, it_waits_or_says)) == {}


def test_a_coordinator_does_not_start_on_a_read_only_disk(masked: Case, tmp_path: Path) -> None:
    def writable(state: Path) -> Path:
        make_writable(state)
        return state

    scenario = Scenario([Fault("read-only")], meanwhile=writable)
    judge = it_says("cannot", "")
    assert asyncio.run(failures(masked, tmp_path, [scenario], judge)) == {}
