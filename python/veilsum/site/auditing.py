"""How a site checks a sum before it acknowledges it: which chunks it looks at, and what follows."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence

from typing_extensions import Buffer

from veilsum.aggregate.ring_spec import Stream
from veilsum.aggregate.tile_audit import SEED_BYTES
from veilsum.errors import AuditError, ConfigError, DecodeError, LedgerError, PeerError
from veilsum.secagg import Entropy, Ledger, Plan, ResultReady
from veilsum.secagg import audit as chunk_audit
from veilsum.secagg.ledger import attempt_of
from veilsum.secagg.ledger_records import ResultRejected
from veilsum.secagg.policy import Audit, Refusal
from veilsum.secagg.result_messages import ALL_CHECKED, MODEL_RECOMPUTED, TILES_CHECKED
from veilsum.secagg.transcript_file import Transcript
from veilsum.secagg.verifying import verify_part
from veilsum.site.effects import FetchAudit, Note, SiteEffect
from veilsum.site.events import AuditFetched, AuditFetchFailed
from veilsum.site.phases import Part

_BATCH_BYTES = 64 << 20  # of masked updates that are in memory at a time
_HEAD_BYTES = 8 << 20  # more than the messages of 255 sites


class SumAudit:
    """The chunks of one sum that a site checks, a batch at a time.

    Args:
        plan: of the round.
        ready: the result that the site was sent.
        seed: 32 fresh random bytes, which choose the chunks; None for all of them.
        threads: to make masks with.
    """

    def __init__(self, plan: Plan, ready: ResultReady, seed: bytes | None, *, threads: int) -> None:
        self._plan, self._ready, self._threads = plan, ready, threads
        spec = plan.ring
        every = list(chunk_audit.all_chunks(spec))
        chunks = every if seed is None else chunk_audit.sampled_chunks(spec, seed)
        self._batches = deque(self._cut(chunks))
        self.level = ALL_CHECKED if len(chunks) == len(every) else TILES_CHECKED

    @property
    def next_batch(self) -> tuple[tuple[Stream, int], ...]:
        """What to fetch next; empty once all are checked."""
        return self._batches[0] if self._batches else ()

    @property
    def largest_answer(self) -> int:
        """No part of a transcript with this batch has more bytes."""
        chunks = sum(self._bytes(*chunk) for chunk in self.next_batch)
        return chunks + len(self._plan.to_bytes()) + _HEAD_BYTES

    def check(self, data: Buffer) -> None:
        """Checks the batch that was fetched.

        Raises:
            AuditError: the sum is another one.
            ConfigError, DecodeError, PeerError: what came does not show what the sum is.
        """
        part = Transcript(data, plan=self._plan, chunks=self.next_batch)
        if part.result != self._ready.result:
            raise DecodeError("what came to check the sum is of another result")
        verify_part(part, threads=self._threads)
        part.seeds.wipe()
        self._batches.popleft()

    def _cut(
        self, chunks: Sequence[tuple[Stream, int]]
    ) -> Iterator[tuple[tuple[Stream, int], ...]]:
        batch: list[tuple[Stream, int]] = []
        size = 0
        for chunk in chunks:
            size += self._bytes(*chunk)
            if batch and size > _BATCH_BYTES:
                yield tuple(batch)
                batch, size = [], self._bytes(*chunk)
            batch.append(chunk)
        if batch:
            yield tuple(batch)

    def _bytes(self, stream: Stream, index: int) -> int:
        """Of a chunk of every upload, and of the sum; proofs are a thousandth of it."""
        parts = len(self._ready.survivors) + 1
        return parts * (self._plan.ring.chunk_bytes(stream, index) + 2048)


class Auditor:
    """What a site's policy says about checking sums.

    Args:
        audit: as of LocalPolicy.
        entropy: chooses the chunks, which nobody else can know before they are asked for.
        ledger: remembers what was found to be wrong; None where no masked round is taken part in.
        threads: to make masks with.
    """

    def __init__(
        self, audit: Audit, entropy: Entropy, ledger: Ledger | None, *, threads: int
    ) -> None:
        self._audit, self._entropy, self._threads = audit, entropy, threads
        self._ledger = ledger
        self._current: tuple[SumAudit, int] | None = None
        self._asked: list[SiteEffect] = []

    def begin(self, part: Part, level: int) -> list[SiteEffect]:
        """The result is what it should be as far as `level` says; what is left to do before it is
        acknowledged, or that."""
        ready, plan = part.contribution.result, part.contribution.plan
        if self._audit == "off" or ready is None or plan is None:
            return part.contribution.acknowledge(level)
        seed = None if self._audit == "all" else bytes(memoryview(self._entropy(SEED_BYTES)))
        self._current = (SumAudit(plan, ready, seed, threads=self._threads), level)
        return self._next(part)

    @property
    def busy(self) -> bool:
        """Whether a batch is on its way."""
        return self._current is not None

    @property
    def asked_for(self) -> list[SiteEffect]:
        """The batch that is on its way."""
        return self._asked if self.busy else []

    def answered(self, part: Part, event: AuditFetched | AuditFetchFailed) -> list[SiteEffect]:
        """A batch has come, or will not."""
        if self._current is None:
            return []
        if isinstance(event, AuditFetchFailed):
            return self._not_shown(part, event.reason)
        try:
            self._current[0].check(event.data)
        except AuditError as wrong:
            return self.wrong(part, str(wrong))
        except (ConfigError, DecodeError, PeerError) as error:
            reason = "what came to check the sum with does not prove it"
            return [Note(f"{reason}: {error}"), *self._reject(part, reason)]
        return self._next(part)

    def _not_shown(self, part: Part, reason: str) -> list[SiteEffect]:
        """Only a site that insists on checking asks, so it does not stand for a sum that it could
        not check."""
        told = "the coordinator does not let this site check the sum"
        return [Note(f"{told}: {reason}"), *self._reject(part, told)]

    def wrong(self, part: Part, reason: str) -> list[SiteEffect]:
        """The result is not what it should be. The site takes part in no further round of the run,
        also if it is started again, and whoever else acknowledges the result."""
        ready, plan = part.contribution.result, part.contribution.plan
        notes: list[SiteEffect] = [Note(f"the result is wrong: {reason}")]
        if ready is not None and plan is not None and self._ledger is not None:
            digest = hashlib.sha256(ready.result.to_payload()).digest()
            try:
                self._ledger.remember(ResultRejected(attempt_of(plan), digest))
            except (LedgerError, Refusal) as error:
                notes.append(Note(f"that could not be remembered: {error}"))
        return [*notes, *self._reject(part, reason)]

    def left(self) -> None:
        """The round is over for this site."""
        self._current = None

    def _next(self, part: Part) -> list[SiteEffect]:
        assert self._current is not None
        audit, level = self._current
        if audit.next_batch:
            self._asked = [FetchAudit(part.round, audit.next_batch, audit.largest_answer)]
            return self._asked
        self._current = None
        # Each level holds the ones below. Who has not made the step vouches for no model, and a
        # site that missed the round counts on those who say more.
        made = level >= MODEL_RECOMPUTED
        return part.contribution.acknowledge(max(level, audit.level) if made else level)

    def _reject(self, part: Part, reason: str) -> list[SiteEffect]:
        self._current = None
        return part.contribution.reject(reason)
