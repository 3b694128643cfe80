"""How events of a run are shown."""

from __future__ import annotations

import pytest

from veilsum.cli.watching import RunView, event_line, live_line
from veilsum.control import RunEvent


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (
            RunEvent("r", "site", 2, site="lyon", detail="was lost in the votes phase"),
            "round 2: lyon was lost in the votes phase",
        ),
        (
            RunEvent(
                "r",
                "round",
                2,
                bytes_in=3 << 20,
                seconds=4.25,
                digest="ab" * 32,
                metrics={"auc": 0.81234},
            ),
            "round 2: 3.0 MiB in 4.2 s, digest abababababababab, auc 0.8123",
        ),
        (RunEvent("r", "run", detail="completed"), "run: completed"),
        (RunEvent("r", "progress", 2, site="lyon", fraction=0.5), None),
        (RunEvent("r", "phase", 2, phase="keys"), None),
    ],
)
def test_finished_things_get_a_line_and_progress_does_not(
    event: RunEvent, line: str | None
) -> None:
    assert event_line(event) == line


def test_the_live_line_says_phase_sites_and_bytes() -> None:
    event = RunEvent(
        "r", "phase", 3, phase="inputs", sites_in=7, sites_expected=12, bytes_in=5 << 20
    )

    assert live_line(event) == "round 3, inputs, 7 of 12 sites, 5.0 MiB"


def test_without_a_terminal_there_is_no_progress(capsys: pytest.CaptureFixture[str]) -> None:
    with RunView(silent=False) as view:
        view.show(RunEvent("r", "phase", 1, phase="keys"))
        view.show(RunEvent("r", "run", detail="completed"))

    shown = capsys.readouterr()
    assert shown.out == "run: completed\n"
    assert shown.err == ""


def test_in_json_mode_there_are_no_lines_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    with RunView(silent=True) as view:
        view.show(RunEvent("r", "run", detail="completed"))

    assert capsys.readouterr().out == ""
