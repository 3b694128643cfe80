"""Verifies a transcript: is the sum that a coordinator signed the sum of what the sites signed?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from veilsum.aggregate.ring_spec import Stream
from veilsum.aggregate.secure_sum import SecureSum
from veilsum.errors import AuditError, DecodeError, RoundAborted
from veilsum.secagg import audit, merkle
from veilsum.secagg.audit_keys import removal
from veilsum.secagg.effects import SecureResult
from veilsum.secagg.masks import MaskKeys
from veilsum.secagg.result import secure_result
from veilsum.secagg.sum_tree import check_chunk
from veilsum.secagg.transcript_file import ProvenChunk, Transcript


@dataclass(frozen=True, slots=True)
class Engine:
    """What recomputes.

    Attributes:
        seed: 32 fresh random bytes: they choose chunks, and the tiles that a device's sum is
            checked in.
        threads: of the native core.
        backend: for a check of all chunks, "cpu" or a device such as "cuda:0".
    """

    seed: bytes
    threads: int = 1
    backend: str = "cpu"


def verify(transcript: Transcript, engine: Engine, *, per_stream: int | None) -> SecureResult:
    """Checks all of a sum against its roots and its decoded mean, and chunks of it against the
    updates.

    Args:
        transcript: a whole one.
        per_stream: how many chunks of each stream are computed again; None for all.

    Returns:
        the round's result, decoded from the sum.

    Raises:
        AuditError: the sum is another one; names the first chunk of which that is so.
        DecodeError, PeerError: the transcript does not hold what its roots and seeds should.
        DeviceError: the device failed.
    """
    spec = transcript.plan.ring
    result = decoded(transcript, threads=engine.threads)
    masks = masks_of(transcript)
    try:
        if per_stream is None:
            _check_all(transcript, masks, engine)
        else:
            chosen = audit.sampled_chunks(spec, engine.seed, per_stream)
            _check_chunks(transcript, masks, chosen, engine.threads)
    finally:
        masks.wipe()
    return result


def verify_part(transcript: Transcript, *, threads: int) -> None:
    """Computes every chunk again that a part of a transcript holds.

    Raises:
        AuditError, DecodeError, PeerError: as verify().
    """
    masks = masks_of(transcript)
    try:
        _check_chunks(transcript, masks, transcript.chunks, threads)
    finally:
        masks.wipe()


def masks_of(transcript: Transcript) -> MaskKeys:
    """What is left in the sum, from seeds that are held against the adverts.

    Raises:
        DecodeError, PeerError: a seed is missing, too much, or not the one that was advertised.
    """
    round_ = transcript.certified
    return removal(transcript.plan, round_.dealers, round_.survivors, transcript.seeds)


def decoded(transcript: Transcript, *, threads: int) -> SecureResult:
    """The result that the transcript's sum decodes to.

    Raises:
        DecodeError: a chunk of the sum is not under its root.
        AuditError: the sum is none that the survivors' updates can have, or its mean or its
            weight is not what the coordinator signed.
    """
    plan, signed, survivors = transcript.plan, transcript.result, transcript.certified.survivors
    total = SecureSum(plan.ring, threads=threads)
    for stream, index in transcript.chunks:
        found, proof = transcript.sum_chunk(stream, index)
        check_chunk(plan.ring, signed.roots, index, found, proof)
        total.load([found])
    try:
        mean = total.finish(len(survivors))
    except RoundAborted as error:
        raise AuditError(f"the sum cannot be the survivors': {error}") from error
    result = secure_result(plan.layout, mean, survivors, {})
    if result.total_weight != signed.total_weight:
        raise AuditError(
            f"the sum has a total weight of {result.total_weight}, {signed.total_weight} was signed"
        )
    if bytes.fromhex(result.digest) != signed.mean_digest:
        raise AuditError("the sum decodes to another mean than the one that was signed")
    return result


def _check_chunks(
    transcript: Transcript, masks: MaskKeys, chunks: Iterable[tuple[Stream, int]], threads: int
) -> None:
    certified = transcript.certified
    receivers = {site: audit.input_receiver(certified, site) for site in certified.survivors}
    for stream, index in chunks:
        again = audit.ChunkAudit(certified, receivers, masks, stream, index, threads=threads)
        for site, proven in transcript.uploads(stream, index):
            again.add(site, proven.chunk, proven.proof)
        found, proof = transcript.sum_chunk(stream, index)
        again.check(transcript.result.roots, found, proof)


def _check_all(transcript: Transcript, masks: MaskKeys, engine: Engine) -> None:
    """Sums all uploads once more, on any backend, as the coordinator had to. The sum's own chunks
    were held against their roots before."""
    total = SecureSum(
        transcript.plan.ring,
        threads=engine.threads,
        backend=engine.backend,
        audit_seed=engine.seed,
    )
    for site, chunks in _uploads(transcript).items():
        _check_upload(transcript, site, chunks)
        total.fold([proven.chunk for proven in chunks])
    total.add_masks(masks.keys, masks.signs)
    total.check_tiles()
    for stream, index in transcript.chunks:
        if total.chunk(stream, index) != transcript.sum_chunk(stream, index)[0]:
            raise audit.wrong_chunk(stream.group, index)


def _uploads(transcript: Transcript) -> dict[str, list[ProvenChunk]]:
    """Views of the transcript, by survivor."""
    uploads: dict[str, list[ProvenChunk]] = {site: [] for site in transcript.certified.survivors}
    for stream, index in transcript.chunks:
        for site, proven in transcript.uploads(stream, index):
            uploads[site].append(proven)
    return uploads


def _check_upload(transcript: Transcript, site: str, chunks: Sequence[ProvenChunk]) -> None:
    """All of an upload at once: each chunk is hashed once, and so is each node."""
    receiver = audit.input_receiver(transcript.certified, site)
    for proven in chunks:
        receiver.add(proven.chunk)
    receiver.finish()
    _, proofs = merkle.root_and_proofs(receiver.hashes)
    if [proven.proof for proven in chunks] != proofs:
        raise DecodeError(f"the proofs of the chunks of site {site!r} are not those of its upload")
