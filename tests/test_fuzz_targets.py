"""The fuzz targets of the protocol: their first inputs pass, and a defect fails them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fuzz.protocol import TARGETS
from veilsum.errors import ConfigError
from veilsum.pki.roster_signing import SignedRoster
from veilsum.roster import Roster
from veilsum.secagg import plan, site_checks
from veilsum.secagg.envelope import Envelope
from veilsum.secagg.receiver import InputReceiver

BY_NAME = {target.name: target for target in TARGETS}


@pytest.mark.parametrize("name", BY_NAME)
def test_first_inputs_and_none_pass(name: str) -> None:
    target = BY_NAME[name]()
    seeds = list(target.seeds())

    for data in (b"", *seeds):
        target.run(data)

    assert len(seeds) > 2


def resigned(target: Any) -> bytes:
    data = bytearray(min(target._originals))
    data[-9] ^= 1  # of the signature: behind it is the key id
    return bytes([254]) + data


def other_values(target: Any) -> bytes:
    """One value of the second chunk is changed, and the checksum made to fit."""
    rest = range(2, len(target._genuine))
    return bytes([0, 0, 2, 1, 0, 40, 0, 7, *(byte for place in rest for byte in (0, place))])


def a_vote_for_another_set(target: Any) -> bytes:
    return b"\0" + bytes([0, 0, 0, 1, 0, 2, 1, 3])


def a_quorum_too_small(target: Any) -> bytes:
    return b"\0" + bytes([0, 2, 0, target._numbers.index("vote_quorum"), 0, 10])


def an_unsigned_roster(target: Any) -> bytes:
    return bytes(target._files[2])


@pytest.mark.parametrize(
    ("name", "check", "broken", "made", "said"),
    [
        ("messages", (Envelope, "verify"), None, resigned, "other bytes for signed"),
        ("chunks", (InputReceiver, "finish"), None, other_values, "whose root was signed"),
        ("certificates", (site_checks, "check_vote"), None, a_vote_for_another_set, "a quorum"),
        ("manifests", (plan, "check_thresholds"), None, a_quorum_too_small, "can be certified"),
        ("rosters", (SignedRoster, "missing"), 0, an_unsigned_roster, "nobody signed"),
    ],
)
def test_without_a_check_its_target_fails(
    name: str,
    check: tuple[Any, str],
    broken: object,
    made: Callable[[Any], bytes],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target = BY_NAME[name]()
    data = made(target)
    target.run(data)

    monkeypatch.setattr(*check, lambda *_, **__: broken)

    with pytest.raises(AssertionError, match=said):
        target.run(data)


@pytest.mark.parametrize(
    ("text", "other"), [(b'"epoch":1', b'"epoch":1.0'), (b'"region":""', b'"region":[]')]
)
def test_a_roster_has_integers_and_text_where_it_says_so(text: bytes, other: bytes) -> None:
    """Both are written as they are read, so that asking for one encoding does not find them."""
    data = BY_NAME["rosters"]()._first.to_bytes()  # type: ignore[attr-defined]

    assert Roster.from_bytes(data).epoch == 1
    with pytest.raises(ConfigError, match="not a roster file"):
        Roster.from_bytes(data.replace(text, other, 1))
