"""How a command ends: its exit code, and the error that means "your settings, not ours"."""

from __future__ import annotations

from veilsum.errors import ConfigError

FAILED = 1
USAGE = 2
INTERRUPTED = 130


class SettingsError(ConfigError):
    """A configuration file that cannot be used; nothing was started."""
