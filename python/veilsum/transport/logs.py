"""Log lines with named fields: ids, sizes and times, never a key, share, mask or value.

A line is an event and its fields. Fields are texts and numbers; anything else, bytes and
arrays above all, is a TypeError where it is logged, so that no payload slips in.

What others can cause as often as they like is a warning, an exception or a notice: of these, lines
of the same event and site are limited (log_volume.py).
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping
from typing import TypeAlias

from veilsum.errors import ConfigError
from veilsum.transport.log_volume import BoundedFile, LineLimit
from veilsum.transport.settings import LogSettings

Field: TypeAlias = str | int | float | bool | None

_MAX_TEXT = 500  # a peer chooses some of the texts


class Log:
    """Writes events to the logger veilsum.<name>, each with the fields bound to it."""

    def __init__(self, name: str, **bound: Field) -> None:
        self._logger = logging.getLogger(f"veilsum.{name}")
        self._bound = bound
        self._limit = LineLimit(time.monotonic)

    def bind(self, **fields: Field) -> Log:
        """A log that adds these fields to each line; it shares this one's limit."""
        log = Log.__new__(Log)
        log._logger, log._bound = self._logger, {**self._bound, **fields}
        log._limit = self._limit
        return log

    def debug(self, event: str, **fields: Field) -> None:
        """For whoever looks for a fault."""
        self._write(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: Field) -> None:
        """The normal course of things."""
        self._write(logging.INFO, event, fields)

    def notice(self, event: str, **fields: Field) -> None:
        """The normal course of things that others can cause as often as they like."""
        self._write_limited(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Field) -> None:
        """Something was refused or lost, and the rest goes on."""
        self._write_limited(logging.WARNING, event, fields)

    def exception(self, event: str, **fields: Field) -> None:
        """An exception that nobody foresaw, with its traceback. Call it in an except block."""
        self._write_limited(logging.ERROR, event, fields, with_traceback=True)

    def report_suppressed(self) -> int:
        """Writes which lines were left out, where no line has said it; to be called now and then.

        Returns:
            How many lines were left out since the last call.
        """
        for event, site, lines in self._limit.unreported():
            self.info("lines left out", of=event, site=site or None, lines=lines)
        return self._limit.suppressed()

    def _write_limited(
        self,
        level: int,
        event: str,
        fields: Mapping[str, Field],
        *,
        with_traceback: bool = False,
    ) -> None:
        if not self._logger.isEnabledFor(level):
            return
        before = self._limit.take(event, str(fields.get("site") or ""))
        if before is None:
            return
        left_out: Mapping[str, Field] = {"left_out": before} if before else {}
        self._write(level, event, {**fields, **left_out}, with_traceback=with_traceback)

    def _write(
        self,
        level: int,
        event: str,
        fields: Mapping[str, Field],
        *,
        with_traceback: bool = False,
    ) -> None:
        if not self._logger.isEnabledFor(level):
            return
        checked = {name: _checked(name, value) for name, value in {**self._bound, **fields}.items()}
        self._logger.log(level, event, extra={"fields": checked}, exc_info=with_traceback)


def _checked(name: str, value: Field) -> Field:
    if isinstance(value, str):
        return value if len(value) <= _MAX_TEXT else value[:_MAX_TEXT] + "..."
    if value is None or isinstance(value, (bool, int, float)):
        return value
    raise TypeError(f"log field {name!r} must be a text or a number, got {type(value).__name__}")


class _Formatter(logging.Formatter):
    """One line per event: key=value, or a JSON object."""

    def __init__(self, *, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Field] = {
            "time": _timestamp(record.created),
            "level": record.levelname.lower(),
            "source": record.name,
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        if self._as_json:
            return json.dumps(line)
        traceback = line.pop("traceback", None)
        text = " ".join(f"{name}={_quoted(value)}" for name, value in line.items())
        return f"{text}\n{traceback}" if traceback else text


def _timestamp(seconds: float) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds % 1 * 1000):03d}Z"


def _quoted(value: Field) -> str:
    # JSON quoting also keeps a peer's line breaks from making lines of their own.
    plain = isinstance(value, str) and value.isprintable() and value and " " not in value
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value) if plain and '"' not in str(value) else json.dumps(value)


def start_logging(settings: LogSettings) -> None:
    """Sends what this process logs to where the settings say. Replaces what was set up before.

    Raises:
        ConfigError: the file cannot be written.
    """
    try:
        handler: logging.Handler = (
            logging.StreamHandler(sys.stderr)
            if settings.file is None
            else BoundedFile(settings.file, settings.max_bytes)
        )
    except OSError as error:
        raise ConfigError(f"cannot write the log {settings.file}: {error.strerror}") from error
    handler.setFormatter(_Formatter(as_json=settings.format == "json"))
    logger = logging.getLogger("veilsum")
    for old in logger.handlers[:]:
        logger.removeHandler(old)
        old.close()
    logger.addHandler(handler)
    logger.setLevel(settings.level.upper())
    logger.propagate = False


def lost_lines() -> int:
    """How many lines of this process's log could not be written since the last call."""
    handlers = logging.getLogger("veilsum").handlers
    return sum(handler.lost() for handler in handlers if isinstance(handler, BoundedFile))
