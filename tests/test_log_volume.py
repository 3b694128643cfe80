"""Nobody can fill the disk by way of the log, and what was left out is said."""

from __future__ import annotations

import errno
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from veilsum.errors import ConfigError
from veilsum.transport import log_volume
from veilsum.transport.log_volume import AT_ONCE, EVERY_S, FILES, BoundedFile, LineLimit
from veilsum.transport.logs import Log, lost_lines, start_logging
from veilsum.transport.settings import LogSettings


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class FullDisk(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def log_file(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "log"
    logger = logging.getLogger("veilsum")
    for handler in logger.handlers[:]:
        logger.removeHandler(handler)
        handler.close()
    logger.setLevel(logging.NOTSET)
    logger.propagate = True


def test_a_repeated_line_is_written_a_few_times_and_then_seldom() -> None:
    clock = Clock()
    limit = LineLimit(clock)

    at_once = [limit.take("call refused", "a") for _ in range(AT_ONCE + 5)]
    clock.now += EVERY_S
    later = [limit.take("call refused", "a") for _ in range(2)]

    assert at_once == [0] * AT_ONCE + [None] * 5
    assert later == [5, None]
    assert limit.suppressed() == 6
    assert limit.suppressed() == 0


def test_lines_of_another_site_or_event_have_limits_of_their_own() -> None:
    limit = LineLimit(Clock())
    for _ in range(AT_ONCE):
        limit.take("call refused", "a")

    assert limit.take("call refused", "a") is None
    assert limit.take("call refused", "b") == 0
    assert limit.take("update refused", "a") == 0


def test_a_pause_fills_the_limit_up_and_no_further() -> None:
    clock = Clock()
    limit = LineLimit(clock)
    for _ in range(AT_ONCE):
        limit.take("call refused", "a")
    clock.now += 1000 * EVERY_S

    taken = [limit.take("call refused", "a") for _ in range(AT_ONCE + 1)]

    assert taken == [0] * AT_ONCE + [None]


def test_very_many_different_lines_share_one_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_volume, "_MOST_KEYS", 3)
    limit = LineLimit(Clock())

    taken = [limit.take("call refused", f"site {number}") for number in range(100)]

    assert taken.count(0) == 3 + AT_ONCE
    assert limit.take("call refused", "site 0") == 0


def test_what_was_left_out_is_reported_once(log_file: Path) -> None:
    start_logging(LogSettings(format="json", file=log_file))
    log = Log("coordinator")
    for number in range(AT_ONCE + 7):
        log.bind(number=number).warning("call refused", site="a")

    assert log.report_suppressed() == 7
    assert log.report_suppressed() == 0

    lines = [json.loads(line) for line in log_file.read_text().splitlines()]
    assert len(lines) == AT_ONCE + 1
    last = lines[-1]
    assert (last["event"], last["of"], last["site"], last["lines"]) == (
        "lines left out",
        "call refused",
        "a",
        7,
    )


def test_notices_and_exceptions_are_limited_and_the_course_of_things_is_not(
    log_file: Path,
) -> None:
    start_logging(LogSettings(file=log_file))
    log = Log("coordinator")

    for _ in range(AT_ONCE + 3):
        log.info("round opened")
        log.notice("site joined", site="a")
        try:
            raise ValueError
        except ValueError:
            log.exception("a call failed", site="a")

    text = log_file.read_text()
    assert text.count('"round opened"') == AT_ONCE + 3
    assert text.count('"site joined"') == AT_ONCE
    assert text.count("Traceback") == AT_ONCE


def test_all_log_files_together_stay_below_the_bound(log_file: Path) -> None:
    start_logging(LogSettings(file=log_file, max_bytes=1 << 20))
    log = Log("coordinator")

    for number in range(8000):
        log.info("an event", number=number, text="x" * 300)

    files = sorted(log_file.parent.iterdir())
    assert [file.name for file in files] == ["log", *(f"log.{n}" for n in range(1, FILES))]
    assert sum(file.stat().st_size for file in files) <= 1 << 20
    assert "number=7999" in log_file.read_text()


def test_a_line_that_cannot_be_written_is_counted_and_stops_nothing(
    log_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start_logging(LogSettings(file=log_file))
    log = Log("coordinator")
    (handler,) = logging.getLogger("veilsum").handlers
    assert isinstance(handler, BoundedFile)
    whole = handler.setStream(FullDisk())

    log.info("one")
    log.info("two")

    assert lost_lines() == 2
    assert lost_lines() == 0
    assert capsys.readouterr().err == ""
    handler.setStream(whole)


def test_a_bound_that_keeps_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"log max_bytes must be 2\*\*20 to"):
        LogSettings(max_bytes=1000)
