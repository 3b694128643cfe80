"""Log lines with named fields: ids, sizes and times, never a key, share, mask or value.

A line is an event and its fields. Fields are texts and numbers; anything else, bytes and
arrays above all, is a TypeError where it is logged, so that no payload slips in.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping
from typing import TypeAlias

from veilsum.errors import ConfigError
from veilsum.transport.settings import LogSettings

Field: TypeAlias = str | int | float | bool | None

_MAX_TEXT = 500  # a peer chooses some of the texts


class Log:
    """Writes events to the logger veilsum.<name>, each with the fields bound to it."""

    def __init__(self, name: str, **bound: Field) -> None:
        self._logger = logging.getLogger(f"veilsum.{name}")
        self._bound = bound

    def bind(self, **fields: Field) -> Log:
        """A log that adds these fields to each line."""
        log = Log.__new__(Log)
        log._logger, log._bound = self._logger, {**self._bound, **fields}
        return log

    def debug(self, event: str, **fields: Field) -> None:
        """For whoever looks for a fault."""
        self._write(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: Field) -> None:
        """The normal course of things."""
        self._write(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Field) -> None:
        """Something was refused or lost, and the rest goes on."""
        self._write(logging.WARNING, event, fields)

    def exception(self, event: str, **fields: Field) -> None:
        """An exception that nobody foresaw, with its traceback. Call it in an except block."""
        self._write(logging.ERROR, event, fields, with_traceback=True)

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
            else logging.FileHandler(settings.file, encoding="utf-8")
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
