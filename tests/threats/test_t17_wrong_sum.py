"""T17: the coordinator signs another sum than that of the updates it counts.

The defences: the sites' signed roots of their updates, the coordinator's signed root of the sum,
and sites that compute chunks of it again, which the coordinator cannot foresee.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest

from support.audits import AuditedRound
from support.secagg import consortium, make_contributions, make_plan, small_arrays
from veilsum import secagg
from veilsum._native import Secret
from veilsum.aggregate.secure_sum import SecureSum
from veilsum.aggregate.tile_audit import chosen_tiles
from veilsum.errors import AuditError, DecodeError
from veilsum.model import ModelLayout
from veilsum.secagg import audit
from veilsum.secagg.envelope import Envelope
from veilsum.secagg.masks import MaskKeys
from veilsum.secagg.transcript_file import Transcript, open_result
from veilsum.secagg.upload import encode_upload
from veilsum.secagg.verifying import verify_part

CHUNK = 4096
CHUNKS = 130  # of stream 1, so that a sample of 64 is about a half of them
SIZE = CHUNKS * CHUNK
WRONG = 77


@cache
def plan() -> secagg.Plan:
    layout = ModelLayout.from_arrays(small_arrays(0, SIZE))
    return make_plan(4, layout=layout, chunk_coordinates=CHUNK)


def held(**options: Any) -> AuditedRound:
    contributions = make_contributions(plan(), lambda seed: small_arrays(seed, SIZE))
    return AuditedRound(plan(), contributions=contributions, **options)


def one_step_more(total: SecureSum) -> None:
    total._words[1][WRONG * CHUNK + 5] += total._words[1].dtype.type(1)


@cache
def tampered() -> AuditedRound:
    return held(tamper=one_step_more)


def audited_by_a_site(audited: AuditedRound, chunks: Sequence[Any]) -> None:
    """What a site does with what it is sent."""
    part = Transcript(audited.transcript(chunks), roster=consortium().roster, chunks=chunks)
    verify_part(part, threads=1)


def test_a_wrong_sum_is_well_signed_and_in_range():
    """Without an audit nothing is wrong with it: the defence removed."""
    certified = tampered().certified
    result = open_result(certified, Envelope.from_bytes(tampered().result()))

    assert result.t3 == certified.t3
    assert tampered().total.finish(4).total_weight == result.total_weight
    assert result.mean_digest.hex() != tampered().federation.result.digest


def test_all_chunks_find_one_wrong_step():
    everything = list(audit.all_chunks(plan().ring))
    with pytest.raises(AuditError, match=f"chunk {WRONG} of stream 1"):
        audited_by_a_site(tampered(), everything)


def test_an_honest_sum_passes():
    audited_by_a_site(held(), audit.sampled_chunks(plan().ring, bytes(32)))


def test_a_sample_finds_it_if_and_only_if_the_chunk_is_in_it():
    found = []
    for number in range(6):
        chunks = audit.sampled_chunks(plan().ring, number.to_bytes(32, "little"))
        holds = (plan().ring.streams[1], WRONG) in chunks
        found.append(holds)
        if holds:
            with pytest.raises(AuditError, match=f"chunk {WRONG} of stream 1"):
                audited_by_a_site(tampered(), chunks)
        else:
            audited_by_a_site(tampered(), chunks)
    assert set(found) == {True, False}


@pytest.mark.parametrize(("chunks", "wrong"), [(130, 1), (1526, 1), (1526, 4), (20_000, 20)])
@pytest.mark.parametrize("sites", [1, 12])
def test_sites_find_it_as_often_as_is_written(chunks, wrong, sites):
    """Each of `sites` misses `wrong` chunks of so many with C(chunks - wrong, 64) / C(chunks, 64).
    400 rounds, within five standard deviations; the seeds are fixed."""
    miss = 1.0
    for number in range(wrong):
        miss *= (chunks - 64 - number) / (chunks - number)
    rate = 1 - miss**sites
    bad = set(range(0, wrong * 7, 7))
    rounds = 400
    seen = sum(
        any(
            not bad.isdisjoint(chosen_tiles((number * 12 + site).to_bytes(32, "little"), 1, chunks))
            for site in range(sites)
        )
        for number in range(rounds)
    )
    assert abs(seen - rounds * rate) <= 5 * (rounds * rate * (1 - rate)) ** 0.5 + 1


def test_an_update_that_is_left_out_of_the_sum_is_in_every_chunk():
    """T3 names the site, and the sum lacks its words: with masks, weight and count made good, which
    only a coordinator with a colluding site can."""
    audited = held()
    victim = "kyoto"

    def leave_out() -> None:
        alone = SecureSum(plan().ring)
        without = make_contributions(plan(), lambda seed: small_arrays(seed, SIZE))[victim]
        encoded = encode_upload(plan(), without, MaskKeys(), update_id=0, threads=1)
        alone.fold(encoded.chunks)
        for group in (1, 2):
            audited.total._words[group] -= alone._words[group]

    leave_out()
    for index in (0, CHUNKS - 1):
        with pytest.raises(AuditError, match=f"chunk {index} of stream 1"):
            audited_by_a_site(audited, [(plan().ring.streams[1], index)])


def test_what_was_signed_is_what_is_audited():
    """The roots are the wrong sum's, the chunks that are served the right one's, or the reverse."""
    honest = held()
    chunks = [(plan().ring.streams[1], WRONG)]
    for served, signed in ((honest, tampered()), (tampered(), honest)):
        roots = Transcript(signed.transcript([]), chunks=[]).result.roots
        data = served.transcript(chunks, roots=roots)
        part = Transcript(data, roster=consortium().roster, chunks=chunks)
        with pytest.raises(DecodeError, match="not under the root"):
            verify_part(part, threads=1)


def test_chunks_are_chosen_after_the_sum_is_signed_and_by_the_site():
    """Two draws of the operating system choose differently; one draw always the same."""
    spec = plan().ring
    one, other = (bytes(memoryview(Secret.from_os(32))) for _ in range(2))
    assert audit.sampled_chunks(spec, one) == audit.sampled_chunks(spec, one)
    assert audit.sampled_chunks(spec, one) != audit.sampled_chunks(spec, other)
    assert len(audit.sampled_chunks(spec, one)) == 64 + 2
