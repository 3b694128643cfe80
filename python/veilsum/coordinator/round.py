"""What a job needs of a round, masked or plain."""

from __future__ import annotations

from typing import Protocol

from typing_extensions import Buffer

from veilsum import secagg
from veilsum.control import UpdateHeader
from veilsum.coordinator.effects import Effect
from veilsum.coordinator.events import ResultPublished, UpdateArrived
from veilsum.coordinator.journal import Journal
from veilsum.coordinator.outcome import Outcome
from veilsum.coordinator.stragglers import Stragglers


class Receiver(Protocol):
    """Checks the chunks of one upload as they arrive, and keeps none of them.

    Attributes:
        chunk_count: chunks of a complete upload.
        max_chunk_bytes: no chunk is larger.
        next_index: position of the first chunk that has not been accepted.
    """

    @property
    def chunk_count(self) -> int: ...
    @property
    def max_chunk_bytes(self) -> int: ...
    @property
    def next_index(self) -> int: ...

    def position(self, chunk: Buffer) -> int:
        """Where in the upload the chunk belongs, by its header.

        Raises:
            DecodeError: it is no chunk of this upload.
        """

    def add(self, chunk: Buffer) -> Buffer:
        """Accepts the chunk at `next_index`; one that was accepted before changes nothing.

        Returns:
            What to keep of it: the chunk, expanded if it was compressed.

        Raises:
            DecodeError, PeerError: the chunk is not one of this upload, or skips another.
        """

    def finish(self) -> None:
        """Raises:
        DecodeError, PeerError: chunks are missing, or they are not what the header announced.
        """


class Round(Protocol):
    """One attempt at one round. Every call returns effects; afterwards `outcome` says whether
    the round is over.

    Attributes:
        settled: whether nothing more is awaited after publish.
        previous: what the next round is told of this one, once it is settled; None if nothing.
        unacknowledged: why no round can follow a settled one, "" if one can.
        published: the signed result that publish sends; empty in a plain round.
        stragglers: of a finished plain round, sites whose updates the next one takes; None if
            there are none.
    """

    journal: Journal
    outcome: Outcome | None
    settled: bool
    previous: secagg.PreviousRound | None
    unacknowledged: str
    stragglers: Stragglers | None

    @property
    def published(self) -> bytes: ...

    def hears(self, site: str, payload: bytes) -> bool:
        """Whether a protocol message of an invited site would change anything."""

    def begin(self, now: float) -> list[Effect]:
        """Invites the cohort."""

    def message(self, site: str, payload: bytes, now: float) -> list[Effect]:
        """Takes a protocol message of an invited site."""

    def lost(self, site: str, reason: str, now: float) -> list[Effect]:
        """An invited site declined or its connection is gone."""

    def rejoined(self, site: str, reason: str, now: float) -> list[Effect]:
        """A new process of an invited site is there.

        Args:
            reason: what became of the one before; empty if that was told by lost().
        """

    def receiver(self, site: str, header: UpdateHeader) -> Receiver:
        """Opens an upload.

        Raises:
            DecodeError, PeerError: why it is refused.
        """

    def update(self, arrived: UpdateArrived, now: float) -> list[Effect]:
        """Takes a complete upload, and answers it."""

    def deadline(self, now: float) -> list[Effect]:
        """The current phase's time is over."""

    def publish(self, model_hash: bytes, state_hash: bytes, now: float) -> list[Effect]:
        """The round has finished and is kept: tells the sites what came of it.

        Args:
            model_hash, state_hash: of the model and the optimizer's state after it, 32 bytes.
        """

    def republish(self, sent: ResultPublished, state_hash: bytes, now: float) -> list[Effect]:
        """After a restart, instead of the end of the round and of publish.

        Args:
            state_hash: as publish was given it.

        Raises:
            ConfigError, DecodeError: they are not of this round, or it is not the time.
        """

    def close(self) -> None:
        """Wipes what must not outlive the round. Idempotent."""
