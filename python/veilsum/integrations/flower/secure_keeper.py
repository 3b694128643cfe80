"""A site's keeper: the long-lived process at a site that holds what a masked round's secrets are.

Flower starts a process of a ClientApp for each message. Seeds and mask keys may be on no disk and
in no other process, so they live in the keeper, for as long as an attempt lasts; the app trains and
never sees them. What the site must not forget is in its ledger. If the keeper ends, the site is
lost to the attempts that it was in, like any site of veilsum that starts again.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from veilsum._native import Secret
from veilsum._version import __version__
from veilsum.errors import ConfigError, DecodeError
from veilsum.integrations.flower.secure_parts import UPLOAD, model_part, read_model_part
from veilsum.integrations.flower.secure_site import SiteCourier
from veilsum.integrations.flower.secure_wire import (
    SESSION_BYTES,
    TO_COORDINATOR,
    TO_SITE,
    Frame,
    Hello,
    Part,
    Sealed,
    seal,
    unseal,
)
from veilsum.model import ModelLayout
from veilsum.records import RoundId
from veilsum.roster import Roster
from veilsum.selftest import require_working
from veilsum.site.effects import Train
from veilsum.site.events import TrainingDone, TrainingFailed
from veilsum.site.trainer import EvaluationResult, TrainingResult
from veilsum.tasks import TaskSettings
from veilsum.transport import wire, wire_data
from veilsum.transport.evidence_files import save_evidence
from veilsum.transport.logs import Log
from veilsum.transport.outgoing import Outgoing, message_kind, update_kind
from veilsum.transport.settings import SiteSettings
from veilsum.transport.site_app import make_core, open_kept
from veilsum.transport.tls import load_signing_key

_SITE = "the site's keeper"


class Training(NamedTuple):
    """What the app is to train: from which model, how."""

    round: RoundId
    task: TaskSettings
    model: Part


@dataclass(frozen=True, slots=True)
class Trained:
    """What the app has trained; without a model it has failed, and `weight` means nothing."""

    round: RoundId
    model: Part | None = None
    weight: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)


class Keeper(Protocol):
    """What secagg_mod talks to."""

    def deliver(self, sealed: Sealed) -> Sealed | Training:
        """Takes a frame of the coordinator; its answer, or what has to be trained for it.

        Raises:
            VeilsumError: it is refused, and why.
        """

    def trained(self, result: Trained) -> Sealed:
        """Takes what was trained, and gives the answer to the frame that asked for it.

        Raises:
            VeilsumError: nobody waits for it any more.
        """


class SiteKeeper:
    """See the top of this file; open_keeper() makes one. Calls come one after another.

    Args:
        leaves: called with kind, bytes and SHA-256 of all that leaves, before it does.
    """

    def __init__(
        self,
        site: str,
        key: Ed25519PrivateKey,
        roster: Roster,
        courier: SiteCourier,
        leaves: Callable[[str, int, bytes], None],
    ) -> None:
        self._site = site
        self._key = key
        self._roster = roster
        self._courier = courier
        self._leaves = leaves
        self._instance = bytes(Secret.from_os(SESSION_BYTES))
        self._line: _Line | None = None
        self._turn = threading.Lock()

    def deliver(self, sealed: Sealed) -> Sealed | Training:
        """As of Keeper. A repeat of the last frame gets the identical answer."""
        frame = unseal(TO_SITE, sealed, self._roster.coordinator_key)
        digest = hashlib.sha256(sealed.envelope).digest()
        with self._turn:
            if frame.number == 0:
                return self._hello(frame)
            line = self._line
            if line is None or frame.session != line.session:
                raise DecodeError(
                    f"{_SITE} is in no session of that name: the message is an old one, or the "
                    "keeper has started again",
                    hint="nothing to do: the next hello of SecureFedAvg begins a new session",
                )
            if (frame.number, digest) == (line.number, line.digest):
                return self._answer(line)
            if frame.number != line.number + 1:
                raise DecodeError(
                    f"{_SITE} was sent frame {frame.number}, expected {line.number + 1}: "
                    "a message was repeated, left out or changed",
                )
            self._line = line = _Line(line.session, frame.number, digest)
            with self._ends_on_error():
                self._courier.take(frame.parts)
                return self._answer(line)

    def trained(self, result: Trained) -> Sealed:
        """As of Keeper."""
        with self._turn:
            line = self._line
            asked = self._courier.training
            if line is None or (line.answer is None and asked is None):
                raise DecodeError(f"{_SITE} waits for no training")
            if asked is not None and asked.round == result.round:
                with self._ends_on_error():
                    self._courier.trained(_event(result))
            answer = self._answer(line)
        if isinstance(answer, Training):
            raise DecodeError("what was trained is of another round than the one that is asked for")
        return answer

    def close(self) -> None:
        """Wipes what is left of a round."""
        with self._turn:
            self._line = None
            self._courier.close()

    def _hello(self, frame: Frame) -> Sealed:
        theirs = frame.parts[0].head if [p.kind for p in frame.parts] == ["hello"] else None
        if theirs != self._roster.hash:
            raise ConfigError(
                "the coordinator has another roster than this site",
                hint="give every member the same bytes of one roster file",
            )
        self._courier.reset()
        session = bytes(Secret.from_os(SESSION_BYTES))
        hello = Hello(self._site, self._roster.hash, session, self._instance, __version__)
        self._line = _Line(session, 0, b"")
        head = hello.to_bytes()
        self._leaves("hello", len(head), hashlib.sha256(head).digest())
        return seal(TO_COORDINATOR, Frame(frame.session, 0, (Part("hello", head),)), self._key)

    def _answer(self, line: _Line) -> Sealed | Training:
        """Made once, then repeated."""
        training = self._courier.training
        if line.answer is None and training is not None:
            return _to_train(training)
        if line.answer is None:
            leaving = self._courier.leaving()
            line.listed = [_listed(part) for part in leaving]
            line.answer = seal(TO_COORDINATOR, Frame(line.session, line.number, leaving), self._key)
        for kind, size, digest in line.listed:
            self._leaves(kind, size, digest)
        return line.answer

    @contextmanager
    def _ends_on_error(self) -> Iterator[None]:
        """A frame that was dealt with in part is never answered: the session is over."""
        try:
            yield
        except Exception:
            self._line = None
            self._courier.reset()
            raise


@dataclass(eq=False)
class _Line:
    """One session, and where it stands; `listed` is what its answer holds."""

    session: bytes
    number: int
    digest: bytes
    answer: Sealed | None = None
    listed: list[tuple[str, int, bytes]] = field(default_factory=list)


@contextmanager
def open_keeper(settings: SiteSettings) -> Iterator[SiteKeeper]:
    """A site's keeper with its files, which no other process can use until it is closed.

    Raises:
        ConfigError: the settings cannot work: they pin no roster, say.
        LedgerError: a ledger is damaged, was copied or restored, or knows a later roster.
        DeviceError: there is no device such as `backend` names, or a self-test failed.
    """
    if settings.roster_hash is None:
        raise ConfigError(
            "a keeper's settings must pin the roster: who the coordinator is, Flower does not show",
            hint="veilsum pki check-roster ROSTER --pin SITE_TOML",
        )
    if settings.ledger is None:
        raise ConfigError("a keeper needs a ledger", hint="set `ledger` to a folder of this site")
    folder, log = settings.ledger / "evidence", Log("keeper", site=settings.site)
    with ExitStack() as files:
        kept = open_kept(settings, files)
        outgoing = Outgoing(kept.egress, log)
        core = make_core(settings, kept, outgoing)
        require_working(settings.backend)
        courier = SiteCourier(
            core,
            settings.max_model_bytes,
            lambda evidence: _keep(folder, evidence),
            lambda text: log.info("note", text=text),
        )
        key = load_signing_key(settings.signing_key)
        keeper = SiteKeeper(settings.site, key, kept.roster, courier, outgoing.leaves)
        files.callback(keeper.close)
        yield keeper


def _keep(folder: Path, evidence: bytes) -> None:
    save_evidence(folder, "coordinator", evidence)


def _event(result: Trained) -> TrainingDone | TrainingFailed:
    if result.model is None:
        return TrainingFailed(result.round, "the app's log says why")
    round_id, _, arrays = read_model_part(result.model)
    done = TrainingResult(arrays, result.weight, dict(result.metrics))
    return TrainingDone(round_id, done, EvaluationResult())


def _to_train(training: Train) -> Training:
    arrays = training.arrays
    layout = ModelLayout.from_arrays(arrays)
    return Training(training.round, training.task, model_part(training.round, layout, arrays))


def _listed(part: Part) -> tuple[str, int, bytes]:
    """Kind, size and digest of what leaves, for the site's list."""
    digest = hashlib.sha256(part.head)
    for blob in part.blobs:
        digest.update(blob)
    size = len(part.head) + sum(memoryview(blob).nbytes for blob in part.blobs)
    kind = part.kind
    if kind == UPLOAD:
        kind = update_kind(wire_data.decode_update_header(part.head)[0])
    elif kind == "message":
        kind = message_kind(wire.decode_to_coordinator(part.head))
    return kind, size, digest.digest()
