"""T37: a peer sends bytes that cost memory or time to read, or an update that is not numbers.

The defence: every length is held against a limit, and against the bytes that are there, before
anything is made of it; values that are not finite are refused before they are encoded.
"""

from __future__ import annotations

import gzip
import json
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

from support.secagg import NAMES, Federation, make_plan
from veilsum import secagg
from veilsum.errors import ConfigError, DecodeError
from veilsum.model import ModelLayout
from veilsum.pki.roster_signing import SignedRoster
from veilsum.roster import Roster
from veilsum.secagg import messages
from veilsum.secagg.envelope import Envelope
from veilsum.secagg.ledger_records import decode_record
from veilsum.secagg.payload import SUITE, Message, read_payload
from veilsum.secagg.refusals import Refuse
from veilsum.secagg.wire import Reader

LIMIT = 2**20
"""No refusal of a few bytes may cost more than this, in bytes."""

HUGE = struct.pack("<I", 2**32 - 1)


def peak_of(parse: Callable[[], Any]) -> int:
    """Bytes that it took at its worst, to refuse what was sent or to read it."""
    tracemalloc.start()
    try:
        with suppress(DecodeError, ConfigError):
            parse()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


class Trusting(Reader):
    """The variant: makes room for what a length says, and then looks."""

    def blob(self, limit: int, field: str) -> bytes:
        room = bytearray(self.integer(4, field))
        left = self.raw(len(room), field)
        room[:] = left
        return bytes(room)


def test_a_reader_that_believes_a_length_makes_room_for_gigabytes():
    four_bytes_ask_for_much = struct.pack("<I", 2**27)  # 128 MiB are enough for the point

    assert peak_of(lambda: Trusting(four_bytes_ask_for_much).blob(2**25, "a blob")) >= 2**27
    assert peak_of(lambda: Reader(four_bytes_ask_for_much).blob(2**25, "a blob")) < 2**14


def head(kind: type[Message]) -> bytes:
    """What every payload begins with."""
    text = kind.kind.encode()
    return struct.pack("<I", len(text)) + text + struct.pack("<H", SUITE) + bytes(32) + bytes(4)


KINDS = [
    kind
    for kind in (*vars(messages).values(), Refuse)
    if isinstance(kind, type) and issubclass(kind, Message) and kind is not Message
]
HOSTILE = {
    "a length of 4 GiB": HUGE * 8,
    "32 MiB, a payload's limit": struct.pack("<I", 2**25) * 8,
    "16 MiB, a layout's limit": struct.pack("<I", 2**24) * 8,
    "65,535 entries": b"\xff\xff" * 40,
    "65,535 entries of nothing": b"\xff\xff" + bytes(500),
    "bytes of ones": b"\xff" * 2000,
}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
@pytest.mark.parametrize("rest", HOSTILE)
def test_no_message_costs_more_than_its_bytes(kind, rest):
    for before in (b"", bytes(32), bytes(64), bytes(96)):
        payload = head(kind) + before + HOSTILE[rest]

        assert peak_of(lambda p=payload: read_payload(kind, p, context=None)) < LIMIT


def test_all_kinds_of_messages_were_tried():
    assert len(KINDS) >= 10


ROSTER = make_plan(4).roster
PARSERS: dict[str, Callable[[bytes], Any]] = {
    "envelope": Envelope.from_bytes,
    "sealed deal": messages.SealedDeal.from_bytes,
    "manifest": lambda data: secagg.Plan.from_bytes(data, roster=ROSTER),
    "layout": ModelLayout.from_bytes,
    "roster": Roster.from_bytes,
    "signed roster": SignedRoster.from_bytes,
    "record of a ledger": decode_record,
}


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize("data", HOSTILE)
def test_no_parser_makes_room_for_what_is_not_there(parser, data):
    for before in (b"", b"VSP3" + ROSTER.hash, b"VLL1", bytes(100)):
        assert peak_of(lambda b=before: PARSERS[parser](b + HOSTILE[data])) < LIMIT


@pytest.mark.parametrize("parser", ["roster", "signed roster"])
def test_a_deep_document_is_refused_and_not_followed_down(parser):
    for opening in (b"[", b'{"a":'):
        with pytest.raises(ConfigError):
            PARSERS[parser](opening * 100_000)


def test_bombs_are_bytes_like_any_others():
    """No message of the protocol is ever unpacked."""
    zeros = bytes(2**24)
    bombs = (gzip.compress(zeros), zlib.compress(zeros), json.dumps({"a": "b"}).encode())
    for parser, bomb in ((parser, bomb) for parser in PARSERS for bomb in bombs):
        assert peak_of(lambda p=parser, b=bomb: PARSERS[p](b)) < LIMIT, parser


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_update_that_is_not_numbers_does_not_leave_its_site(value):
    federation = Federation(make_plan(4))
    given = federation.contributions[NAMES[0]]
    broken = {**given.update, "weight": given.update["weight"].copy()}
    broken["weight"][3] = value
    federation.contributions[NAMES[0]] = given._replace(update=broken)

    with pytest.raises(ConfigError, match="not finite"):
        federation.run()
    assert NAMES[0] not in federation.payloads("masked-input")
