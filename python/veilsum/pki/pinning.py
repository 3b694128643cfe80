"""A site's pin: the hash of the roster it agreed to, in its own site.toml."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from veilsum.errors import ConfigError
from veilsum.pki.files import replace_file
from veilsum.roster import Roster

_PIN_LINE = re.compile(r"^roster_hash\s*=.*$", re.MULTILINE)
_ROSTER_LINE = re.compile(r"^roster\s*=.*$", re.MULTILINE)


def pin_roster(config: Path, roster: Roster) -> None:
    """Writes roster_hash into a site.toml; nothing else in it changes.

    A pin only goes forward: from none to any roster, and from one roster to the next, which names
    it as the one before. So an epoch that revoked a member is not undone by an older file.

    Raises:
        ConfigError: the file cannot be read or has no key `roster`, or the site has agreed to a
            roster that this one does not follow.
    """
    try:
        text = config.read_text(encoding="utf-8")
        before = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"cannot read {config}: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{config} is not TOML: {error}") from error
    pinned, new = before.get("roster_hash"), roster.hash.hex()
    if pinned not in (None, new, roster.previous.hex()):
        raise ConfigError(
            f"{config} pins the roster {pinned}, which the one of epoch {roster.epoch} does not "
            "follow",
            hint="pin the epochs in their order; a consortium that starts anew, with a first "
            "roster that all of its sites sign, has each site take its old pin out by hand",
        )
    line = f'roster_hash = "{new}"'
    if pinned is not None:
        edited = _PIN_LINE.sub(line, text, count=1)
    else:
        edited = _ROSTER_LINE.sub(lambda found: f"{found[0]}\n{line}", text, count=1)
    # The edit is one of lines, and TOML is more than that: what it made must be what was meant.
    if tomllib.loads(edited) != before | {"roster_hash": new}:
        raise ConfigError(f"cannot edit {config}", hint=f"write into it, beside roster: {line}")
    replace_file(config, edited.encode())
