"""Transcripts: what verifies with the roster alone, and that no other bytes do."""

from __future__ import annotations

import resource
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from support.audits import AuditedRound
from support.secagg import consortium, make_contributions, make_plan, small_arrays
from veilsum import _native, secagg
from veilsum._native import Secret
from veilsum.errors import AuditError, ConfigError, DecodeError, PeerError, VeilsumError
from veilsum.model import ModelLayout
from veilsum.secagg import audit
from veilsum.secagg.certified import CertifiedRound
from veilsum.secagg.transcript_file import MAGIC, Transcript
from veilsum.secagg.verifying import Engine, verify, verify_part

ENGINE = Engine(seed=bytes(range(32)))
SIZE = 9000  # three chunks
LOST = "kyoto"


def plan_of(**changes: object) -> secagg.Plan:
    layout = ModelLayout.from_arrays(small_arrays(0, SIZE))
    return make_plan(5, layout=layout, chunk_coordinates=4096, **changes)


def held(plan: secagg.Plan | None = None, **options: Any) -> AuditedRound:
    plan = plan or plan_of()
    contributions = make_contributions(plan, lambda seed: small_arrays(seed, SIZE))
    return AuditedRound(plan, contributions=contributions, **options)


@cache
def audited() -> AuditedRound:
    return held(lost=[LOST])


@cache
def transcript_bytes() -> bytes:
    return audited().transcript()


def verified(data: bytes, *, per_stream: int | None = None) -> secagg.SecureResult:
    return verify(Transcript(data, roster=consortium().roster), ENGINE, per_stream=per_stream)


@pytest.mark.parametrize("per_stream", [None, 1, 2, 64])
def test_a_transcript_verifies_and_decodes_to_the_result_of_the_round(per_stream):
    result = verified(transcript_bytes(), per_stream=per_stream)

    known = audited().federation.result
    assert (result.digest, result.total_weight) == (known.digest, known.total_weight)
    assert result.sites == known.sites
    assert LOST not in result.sites


@pytest.mark.parametrize(
    "change", [{"mask_generator": "aes256ctr"}, {"hadamard": 1024, "clip": 64.0}]
)
def test_other_rounds_verify_too(change):
    audited_round = held(plan_of(**change))

    assert verified(audited_round.transcript()).digest == audited_round.federation.result.digest


def test_all_chunks_are_replayed_on_an_emulated_device():
    transcript = Transcript(transcript_bytes(), roster=consortium().roster)
    result = verify(transcript, replace(ENGINE, backend="emu"), per_stream=None)

    assert result.digest == audited().federation.result.digest


def test_a_transcript_says_its_roster_if_nobody_else_does():
    transcript = Transcript(transcript_bytes())

    assert transcript.roster.hash == consortium().roster.hash


def test_a_transcript_of_another_roster_is_refused():
    other = secagg.make_consortium(consortium().roster.sites).roster
    with pytest.raises(ConfigError, match="is of roster"):
        Transcript(transcript_bytes(), roster=other)


def test_a_part_holds_the_chunks_that_were_asked_for_and_no_others():
    spec = audited().plan.ring
    for chunks in ([], [(spec.streams[1], 2)], [(spec.streams[0], 0), (spec.streams[1], 1)]):
        data = audited().transcript(chunks)
        part = Transcript(data, roster=consortium().roster, chunks=chunks)
        verify_part(part, threads=1)
        with pytest.raises(DecodeError, match="make it"):
            Transcript(data, roster=consortium().roster)


def test_a_chunk_of_the_same_size_from_another_place_is_none_that_was_asked_for():
    stream = audited().plan.ring.streams[1]
    data = audited().transcript([(stream, 1)])
    part = Transcript(data, roster=consortium().roster, chunks=[(stream, 0)])
    with pytest.raises(DecodeError, match="not under the root"):
        verify_part(part, threads=1)


def test_no_byte_of_a_transcript_can_be_changed():
    """One byte of every 251, which is prime to all sizes of fields, and all of the heads of
    sections and of what stands between them; the first byte of a class tells the class."""
    data = transcript_bytes()
    body = data.index(audited().total.chunk(audited().plan.ring.streams[0], 0).words)
    places = {*range(64), *range(0, body, 47), *range(body, len(data), 4099), len(data) - 1}
    refused = 0
    for place in sorted(places):
        changed = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        with pytest.raises(VeilsumError):
            verified(changed)
        refused += 1
    assert refused == len(places) > 200


def sections_of(data: bytes) -> list[tuple[int, int, int]]:
    """(kind, first byte of the body, size)."""
    found, place = [], len(MAGIC)
    while place < len(data):
        size = int.from_bytes(data[place + 1 : place + 9], "little")
        found.append((data[place], place + 9, size))
        place += 9 + size
    return found


def test_sections_come_in_the_order_that_the_plan_gives():
    kinds = [kind for kind, _, _ in sections_of(transcript_bytes())]

    chunks = len(list(audit.all_chunks(audited().plan.ring)))
    assert kinds == [1, 2, 3, 4, 5, *([6, 7, 7, 7, 7] * chunks)]


def test_every_section_head_and_the_edges_of_every_body_are_held():
    data = transcript_bytes()
    for _, begin, size in sections_of(data):
        for place in {begin - 9, begin - 8, begin - 1, begin, begin + size // 2, begin + size - 1}:
            changed = data[:place] + bytes([data[place] ^ 0x80]) + data[place + 1 :]
            with pytest.raises(VeilsumError):
                verified(changed)


@pytest.mark.parametrize("kind", range(1, 8))
def test_a_size_is_held_against_its_limit_before_anything_is_read(kind):
    data = transcript_bytes()
    begin = next(place for found, place, _ in sections_of(data) if found == kind)
    for size in (2**63, 2**40, 2**31, 0):
        changed = data[: begin - 8] + size.to_bytes(8, "little") + data[begin:]
        with pytest.raises(VeilsumError):
            verified(changed)


def test_a_plan_of_more_chunks_than_the_file_has_room_for_is_refused_at_once():
    """2^28 chunks, of which each list would be gigabytes."""
    tall = ModelLayout(_native.Layout([("weight", "f16", (2**20, 2**19))]))
    head = replace(audited().head(), plan=replace(audited().plan, layout=tall))
    data = b"".join(head.sections())
    began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DecodeError, match="cannot hold"):
        Transcript(data)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - began < 50_000  # KiB


def test_a_transcript_of_another_plan_than_was_asked_for_is_refused():
    other = replace(audited().plan, nonce=bytes([1]) * 32)
    with pytest.raises(DecodeError, match="another plan"):
        Transcript(transcript_bytes(), plan=other)


def test_a_transcript_is_whole():
    data = transcript_bytes()
    for end in (0, 3, 4, 8, 100, len(data) // 2, len(data) - 1):
        with pytest.raises(DecodeError):
            verified(data[:end])
    with pytest.raises(DecodeError, match="make it"):
        verified(data + b"\0")


def test_chunks_of_an_upload_are_those_that_the_site_signed():
    """Two sites' chunks change places: both are well-formed, and neither is at home."""
    data = transcript_bytes()
    uploads = [place for place in sections_of(data) if place[0] == 7][:2]
    one, two = (data[begin : begin + size] for _, begin, size in uploads)
    (_, first, size), (_, second, _) = uploads
    swapped = data[:first] + two + data[first + size : second] + one + data[second + size :]
    with pytest.raises(DecodeError, match="not under the root"):
        verified(swapped, per_stream=64)
    with pytest.raises(VeilsumError):
        verified(swapped)


# --- what the messages of a round must be ---------------------------------------------


def opened(**changes: object) -> CertifiedRound:
    return CertifiedRound.opened(audited().plan, replace(audited().record.signed, **changes))


def test_a_round_is_what_its_messages_say():
    certified = opened()
    known = audited().federation

    assert certified.survivors == known.result.sites
    assert certified.dropouts == (LOST,)
    assert certified.t3 == audited().certified.t3
    assert set(certified.voters) == set(audited().record.votes)


@pytest.mark.parametrize("kind", ["adverts", "deals", "inputs", "votes"])
def test_messages_are_signed_sorted_and_no_less_than_they_were(kind):
    envelopes = getattr(audited().record.signed, kind)
    forged = replace(envelopes[0], signature=bytes(64))
    for wrong in (
        envelopes[::-1],
        (envelopes[0], *envelopes),
        (forged, *envelopes[1:]),
        (),
        envelopes[1:],
    ):
        with pytest.raises((DecodeError, PeerError)):
            opened(**{kind: wrong})


def test_messages_of_one_kind_do_not_pass_for_another():
    signed = audited().record.signed
    for one in ("adverts", "deals", "inputs", "votes"):
        for other in ("adverts", "deals", "inputs", "votes"):
            if one != other:
                with pytest.raises((DecodeError, PeerError)):
                    opened(**{one: getattr(signed, other)})


def test_fewer_votes_than_the_quorum_certify_nothing():
    votes = audited().record.signed.votes
    assert len(votes) == 4
    with pytest.raises(DecodeError, match="3 sites voted, 4 are needed"):
        opened(votes=votes[:3])


# --- what the coordinator signs, and the seeds -------------------------------------------


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"t3": bytes(32)}, "of other updates than the sites voted for"),
        ({"certificate": bytes(32)}, "names another certificate"),
        ({"roots": ()}, "the plan has"),
        ({"total_weight": 1}, "a total weight of"),
        ({"mean_digest": bytes(32)}, "another mean"),
    ],
)
def test_a_result_that_does_not_follow_from_the_round_is_refused(change, error):
    with pytest.raises((AuditError, DecodeError), match=error):
        verified(audited().transcript(**change))


@pytest.mark.parametrize(("group", "bit"), [(0, 20), (1, 20), (2, 40)])
def test_a_sum_that_no_survivors_can_have_is_found_without_an_update(group, bit):
    def tamper(total):
        total._words[group][1] ^= total._words[group].dtype.type(1 << bit)

    wrong = held(tamper=tamper)
    with pytest.raises(AuditError, match="cannot be the survivors'"):
        verified(wrong.transcript(), per_stream=1)


@pytest.mark.parametrize("which", ["self_seeds", "mask_seeds"])
def test_a_seed_is_the_one_that_its_site_advertised(which):
    made = audited()
    head = made.head()
    seeds = dict(getattr(head.seeds, which))
    site = next(iter(seeds))
    wrong = replace(head, seeds=replace(head.seeds, **{which: {**seeds, site: Secret.zeros(32)}}))
    with pytest.raises(PeerError, match=f"'{site}' shared another secret"):
        verified(with_head(wrong))
    fewer = replace(head, seeds=replace(head.seeds, **{which: {}}))
    with pytest.raises(DecodeError, match="not those of the survivors"):
        verified(with_head(fewer))


def test_both_seeds_of_one_site_never_pass():
    """They would unmask its update, and no honest coordinator has both."""
    head = audited().head()
    site = next(iter(head.seeds.self_seeds))
    both = replace(head.seeds, mask_seeds={**head.seeds.mask_seeds, site: Secret.zeros(32)})
    with pytest.raises(DecodeError, match="not those of the survivors"):
        verified(with_head(replace(head, seeds=both)))


def with_head(head: object) -> bytes:
    rest = transcript_bytes()[len(b"".join(audited().head().sections())) :]
    return b"".join(head.sections()) + rest  # type: ignore[attr-defined]


# --- wrong sums ----------------------------------------------------------------------


@pytest.mark.parametrize("per_stream", [None, 64])
def test_a_wrong_word_is_found_and_its_chunk_named(per_stream):
    for group, place in ((1, 0), (1, 4095), (1, 4096), (1, SIZE - 1), (2, 2)):

        def tamper(total, group=group, place=place):
            total._words[group][place] += total._words[group].dtype.type(1)

        wrong = held(tamper=tamper)
        # The coordinator's own result is consistent with what it signed.
        with pytest.raises(AuditError, match=f"chunk {place // 4096} of stream {group}"):
            verified(wrong.transcript(), per_stream=per_stream)


def test_transcripts_show_no_seed_when_they_are_printed():
    head = audited().head()
    assert "Secret" not in repr(head)
    assert bytes(32).hex() not in repr(head)
