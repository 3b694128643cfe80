"""T29: a member, or a program at a member, hides data where nobody looks for any.

The defence: every bit of an upload is either a ring word or zero, a message has one encoding, and
a plan names the metrics that there are.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from reference import codecs as reference
from support.secagg import UPLOAD, Federation, forge, make_contributions, make_plan
from support.word_uploads import upload_of_words
from veilsum import _native, secagg
from veilsum.aggregate.secure_sum import SecureSum
from veilsum.errors import ConfigError, DecodeError, PeerError, RoundAborted
from veilsum.model import ModelLayout
from veilsum.secagg import merkle
from veilsum.secagg.accusing import Accuser
from veilsum.secagg.envelope import Envelope
from veilsum.secagg.messages import InputHeader, UnmaskShares
from veilsum.secagg.payload import read_payload

SENDER = "kyoto"
ARRAYS = {"weight": np.zeros(100, np.float32)}
PLAN, UPDATE_ID = bytes(range(32)), 7
BITS, COUNT = 21, 61  # 1281 bits of words: 7 bits of the last byte are left over, and 24 after it


def odd_chunk(extra: int | None = None) -> bytes:
    """61 words of zero and, perhaps, one bit more, under a checksum that holds."""
    size = -(-BITS * COUNT // 8)
    good = reference.chunk(f"ring{BITS}", 1, 0, 0, True, (b"", bytes(size)), COUNT, PLAN, UPDATE_ID)
    body = bytearray(good[64:])
    if extra is not None:
        body[extra // 8] |= 1 << extra % 8
    return reference.sealed(good[:60], bytes(body))


def words_of(chunk: bytes) -> list[int]:
    """What a reader that looks at words alone finds."""
    packed = int.from_bytes(chunk[64:], "little")
    return [packed >> (at * BITS) & (2**BITS - 1) for at in range(COUNT)]


def check(chunk: bytes) -> int:
    return _native.check_chunk(
        chunk,
        codec=reference.codec_number(f"ring{BITS}"),
        group=1,
        group_size=COUNT,
        masked=False,
        plan_digest=PLAN,
        update_id=UPDATE_ID,
        chunk_coordinates=4096,
    )


PADDING = range(BITS * COUNT, 8 * (len(odd_chunk()) - 64))


def test_a_reader_of_words_alone_does_not_see_what_is_behind_them():
    assert len(PADDING) > 7
    empty = words_of(odd_chunk())
    for bit in PADDING:
        assert words_of(odd_chunk(bit)) == empty
    assert len({odd_chunk(bit) for bit in PADDING}) == len(PADDING)


@pytest.mark.parametrize("bit", PADDING)
def test_every_bit_behind_the_words_is_looked_at(bit):
    assert check(odd_chunk()) == 0
    with pytest.raises(DecodeError, match="padding"):
        check(odd_chunk(bit))


@pytest.mark.parametrize("value_bits", range(2, 33))
def test_the_chunks_of_a_masked_update_have_no_such_bits(value_bits):
    """Groups are multiples of 64 words long, and so end with a byte."""
    plan = make_plan(4, layout=ModelLayout.from_arrays(ARRAYS), value_bits=value_bits)
    for stream in plan.ring.streams:
        (size,) = plan.ring.chunk_sizes(stream)
        if stream.group:
            assert 8 * (size - 64) == stream.elements * stream.bits


def federation() -> Federation:
    plan = make_plan(4, layout=ModelLayout.from_arrays(ARRAYS))
    return Federation(plan, contributions=make_contributions(plan, lambda _: ARRAYS))


def test_every_bit_of_a_chunks_header_is_fixed_by_the_round():
    """Checksum, Merkle root and signature are put right each time."""
    round_ = federation()
    upload = round_.hold(UPLOAD, origin=SENDER)
    good = upload.chunks[1]
    for bit in range(8 * 60):  # the checksum is behind these
        head = bytearray(good[:60])
        head[bit // 8] ^= 1 << bit % 8
        chunks = [upload.chunks[0], reference.sealed(bytes(head), good[64:]), *upload.chunks[2:]]
        root = merkle.root_hash([merkle.leaf_hash(one) for one in chunks])
        header = forge(InputHeader, upload.header, root=root)
        round_.coordinator._accuser = Accuser(round_.plan)  # else only one header may be signed
        with pytest.raises((DecodeError, PeerError)):
            round_.deliver(SENDER, "", replace(upload, header=header, chunks=chunks))
    round_.coordinator._accuser = Accuser(round_.plan)
    round_.deliver(SENDER, "", upload)
    round_.run()
    assert round_.result.sites == round_.plan.cohort


def test_a_word_between_tensors_ends_the_round():
    """The coordinator sees masks there. What it can see is the sum, in which all are zero."""
    arrays = {"a": np.zeros(3, np.float32), "b": np.zeros(3, np.float32)}
    plan = make_plan(4, layout=ModelLayout.from_arrays(arrays), metrics=())
    (_, first, count), *_ = plan.layout.native.offsets(1)
    total = secagg_sum(plan, gap=first + count)

    with pytest.raises(RoundAborted, match="a gap between tensors is not zero"):
        total.finish(1)


def secagg_sum(plan: secagg.Plan, gap: int) -> SecureSum:
    total = SecureSum(plan.ring)
    total.fold(upload_of_words(plan, {0: [1, 1], 1: [0] * gap + [1]}))
    return total


def test_a_metric_that_the_plan_does_not_name_is_not_sent():
    round_ = federation()
    given = round_.contributions[SENDER]
    round_.contributions[SENDER] = given._replace(metrics={"the patient's name": 1.0})

    with pytest.raises(ConfigError, match="are not summed in this round"):
        round_.run()


def test_a_message_has_no_room_for_more():
    """Each byte of the last message of a site but the shares is fixed by the round, and no byte
    can follow."""
    answer = federation().hold("unmask-shares", origin=SENDER)
    payload = Envelope.from_bytes(answer).payload

    for longer in (payload + b"\0", payload + payload[-32:]):
        with pytest.raises(DecodeError):
            read_payload(UnmaskShares, longer, context=None)
