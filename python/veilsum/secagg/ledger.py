"""What a site must not forget between rounds, and what it refuses because of it.

A site that forgets can be asked again. Two sums of the same updates over two sets of sites
show the update of whoever is in one of them only; two votes in one attempt can certify two
such sets; two masked updates under the same masks show their difference. So the site writes
down what it is about to do, and does it only once that is durable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, assert_never

import numpy as np
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC
from numpy.typing import NDArray

from veilsum import _native
from veilsum._native import Secret
from veilsum.arrays import on_its_device
from veilsum.errors import ConfigError, LedgerError
from veilsum.roster import Roster
from veilsum.secagg.keys import SECRET_BYTES, Entropy
from veilsum.secagg.ledger_records import (
    AckSent,
    Adopted,
    Attempt,
    Contributed,
    LedgerRecord,
    ModelKnown,
    Opened,
    Overtaken,
    ResultRejected,
    RosterAgreed,
    VoteCast,
)
from veilsum.secagg.plan import Plan
from veilsum.secagg.policy import Refusal

Append: TypeAlias = Callable[[LedgerRecord], None]
"""Returns when the record is durable. Raises LedgerError otherwise, and then for ever."""


def attempt_of(plan: Plan) -> Attempt:
    """How the ledger names a plan's attempt."""
    return Attempt(plan.task_id, plan.run_id, plan.round_number, plan.attempt, plan.context)


@dataclass(slots=True)
class _Latest:
    """What happened in the last attempt of a run that this site was in."""

    attempt: Attempt
    earlier: frozenset[bytes] = frozenset()  # tags of updates it sent in attempts before this one
    tag: bytes | None = None  # of the update it sent
    t3: bytes | None = None  # what it voted for
    ack: AckSent | None = None

    @property
    def voted(self) -> bool:
        return self.t3 is not None

    @property
    def order(self) -> tuple[int, int]:
        return self.attempt.round_number, self.attempt.attempt

    @property
    def sent(self) -> frozenset[bytes]:
        """Tags of all updates it sent in the round."""
        return self.earlier if self.tag is None else self.earlier | {self.tag}

    def next_is(self, attempt: Attempt) -> _Latest:
        same_round = attempt.round_number == self.attempt.round_number
        return _Latest(attempt, self.sent if same_round else frozenset())


class LedgerState:
    """What the records so far say. Pure: no file, no key."""

    def __init__(self) -> None:
        self._latest: dict[tuple[str, str], _Latest] = {}  # by task and run
        self._sent: dict[str, set[bytes]] = {}  # task -> tags of updates that left
        self._spent: dict[str, set[bytes]] = {}  # task -> those of attempts it voted in
        self._survivors: dict[str, frozenset[str]] = {}  # task -> last set voted for
        self._acks: dict[tuple[str, str], AckSent] = {}  # by task and run, the last one
        self._models: dict[str, bytes] = {}  # task -> model after the last of them
        self._rejected: set[tuple[str, str]] = set()  # task and run
        self._wrong: set[bytes] = set()  # digests of the results that it found to be wrong
        self._overtaken = False
        self._known: dict[str, set[ModelKnown]] = {}  # by task
        self._rosters: dict[str, RosterAgreed] = {}  # by consortium, the last one

    def check(self, record: LedgerRecord) -> None:
        """Whether the site may do what the record stands for.

        Raises:
            Refusal: code "replay", "spent", "result", "epoch" or "ledger".
        """
        if self._overtaken and isinstance(record, Opened):
            raise overtaken()
        match record:
            case Opened(attempt):
                self._check_opened(attempt)
            case Contributed(attempt, _, tag):
                latest = self._of(attempt)
                if latest.tag is not None or latest.voted:
                    raise Refusal("replay", "this site sent an update in that attempt already")
                # Two sums over different sites of one update would show the difference, whether
                # or not this site voted for either.
                if tag in latest.earlier or tag in self._spent.get(attempt.task_id, ()):
                    raise _spent()
            case VoteCast(attempt):
                if self._of(attempt).voted:
                    raise Refusal("replay", "this site voted in that attempt already")
            case AckSent(attempt):
                latest = self._of(attempt)
                if not latest.voted:
                    raise Refusal("replay", "this site did not vote in that attempt")
                if latest.ack is not None:
                    raise Refusal("replay", "this site acknowledged a result of it already")
            case ResultRejected(attempt):
                if self._of(attempt).ack is not None:
                    raise Refusal("replay", "this site acknowledged a result of it already")
            case RosterAgreed(_, epoch):
                last = self._rosters.get(record.consortium)
                if last is not None and epoch <= last.epoch and record != last:
                    raise Refusal("epoch", f"this site served with epoch {last.epoch} already")
            case Overtaken() | Adopted() | ModelKnown():
                return
            case _:
                assert_never(record)

    def _check_opened(self, attempt: Attempt) -> None:
        # What a quorum of others acknowledged all the same is not what this site goes on from.
        if (attempt.task_id, attempt.run_id) in self._rejected:
            raise Refusal("result", "this site found a result of that run to be wrong")
        latest = self._latest.get((attempt.task_id, attempt.run_id))
        if latest is None:
            return
        now = (attempt.round_number, attempt.attempt)
        has_result = latest.ack is not None and attempt.round_number == latest.order[0]
        if now <= latest.order or has_result:
            raise Refusal("replay", "this site took part in that round, or in a later one, already")

    def _of(self, attempt: Attempt) -> _Latest:
        latest = self._latest.get((attempt.task_id, attempt.run_id))
        if latest is None or latest.attempt != attempt:
            raise Refusal("replay", "that is not the last attempt this site has opened")
        return latest

    def apply(self, record: LedgerRecord) -> None:
        """The record is durable."""
        match record:
            case Opened(attempt):
                run = (attempt.task_id, attempt.run_id)
                latest = self._latest.get(run)
                self._latest[run] = latest.next_is(attempt) if latest else _Latest(attempt)
            case Contributed(attempt, _, tag):
                self._of(attempt).tag = tag
                self._sent.setdefault(attempt.task_id, set()).add(tag)
            case VoteCast(attempt, t3, survivors):
                latest = self._of(attempt)
                latest.t3 = t3
                if latest.tag is not None:
                    self._spent.setdefault(attempt.task_id, set()).add(latest.tag)
                self._survivors[attempt.task_id] = frozenset(survivors)
            case AckSent(attempt, _, model_hash):
                self._of(attempt).ack = record
                self._acks[attempt.task_id, attempt.run_id] = record
                self._models[attempt.task_id] = model_hash
            case ResultRejected(attempt, result):
                self._rejected.add((attempt.task_id, attempt.run_id))
                self._wrong.add(result)
            case Overtaken():
                self._overtaken = True
            case ModelKnown(task_id):
                self._known.setdefault(task_id, set()).add(record)
            case RosterAgreed(consortium):
                self._rosters[consortium] = record
            case Adopted():
                self._overtaken = False
            case _:
                assert_never(record)

    def check_never_sent(self, task_id: str, tag: bytes) -> None:
        """Whether an update has not left in any attempt of a task, voted in or not.

        Raises:
            Refusal: code "spent".
        """
        if tag in self._sent.get(task_id, ()):
            raise _spent()

    def knows_model(self, model: ModelKnown) -> bool:
        """Whether the site may train from it as it is (origin.py)."""
        return any(known.covers(model) for known in self._known.get(model.task_id, ()))

    def knows_task(self, task_id: str | None) -> bool:
        """Whether any model of a task is known; of any task at all, without a name."""
        return bool(self._known if task_id is None else self._known.get(task_id))

    def has_agreed(self, record: RosterAgreed) -> bool:
        """Whether that roster is the last one of its consortium."""
        return self._rosters.get(record.consortium) == record

    def updates_sent(self, task_id: str, run_id: str, round_number: int) -> int:
        """How many updates left the site in all attempts at a round, if it is the run's last."""
        latest = self._latest.get((task_id, run_id))
        if latest is None or latest.attempt.round_number != round_number:
            return 0
        return len(latest.sent)

    def last_survivors(self, task_id: str) -> frozenset[str] | None:
        """The last set that this site voted for in a task, in any run; None before the first."""
        return self._survivors.get(task_id)

    def last_ack(self, task_id: str, run_id: str) -> AckSent | None:
        """The last result of a run that this site acknowledged; None before the first."""
        return self._acks.get((task_id, run_id))

    def has_rejected(self, result_digest: bytes) -> bool:
        """Whether this site found that result to be wrong."""
        return result_digest in self._wrong

    def vote_in(self, attempt: Attempt) -> bytes | None:
        """T3 that this site voted for, if that is the last attempt of its run it was in."""
        latest = self._latest.get((attempt.task_id, attempt.run_id))
        return latest.t3 if latest is not None and latest.attempt == attempt else None

    def last_model(self, task_id: str) -> bytes | None:
        """Hash of the model after the last round of a task that this site acknowledged."""
        return self._models.get(task_id)


def overtaken() -> Refusal:
    """What a site answers from then on that its ledger is found to be an old one."""
    return Refusal("ledger", "this site's ledger is older than what the site has signed")


def _spent() -> Refusal:
    return Refusal("spent", "this site's update is one that left it in an earlier round")


class Ledger:
    """A site's memory: says no to what contradicts it, and keeps what does not.

    Args:
        key: 32 secret bytes that stay with the site. Without them an update's tag would let
            whoever reads the ledger try guesses of the update.
        append: makes a record durable.
        records: what was remembered so far.

    Raises:
        LedgerError: the records contradict one another.
    """

    def __init__(self, key: Secret, append: Append, records: Iterable[LedgerRecord] = ()) -> None:
        if len(key) != SECRET_BYTES:
            raise ConfigError(f"the ledger key must have {SECRET_BYTES} bytes")
        self._key = key
        self._append = append
        self._state = LedgerState()
        for number, record in enumerate(records, 1):
            try:
                self._state.check(record)
            except Refusal as refusal:
                raise LedgerError(
                    f"record {number} of the ledger contradicts an earlier one: {refusal}"
                ) from refusal
            self._state.apply(record)

    @classmethod
    def in_memory(cls, entropy: Entropy) -> Ledger:
        """Remembers as long as the process runs: for rounds within one process, and tests."""
        return cls(entropy(SECRET_BYTES), lambda record: None)

    def remember(self, record: LedgerRecord) -> None:
        """To be called before anything leaves that the record stands for.

        Raises:
            Refusal: it contradicts what is remembered; nothing was written.
            LedgerError: it may not have become durable, and nothing will from now on.
        """
        self._state.check(record)
        self._append(record)
        self._state.apply(record)

    def agree_to(self, roster: Roster) -> None:
        """To be called before the site serves with a roster. Epochs only go forward, whatever
        the site's files say: a site.toml and a roster that came back from a backup would bring
        back a member whose key was revoked since.

        Raises:
            LedgerError: the site has served with a later epoch, or with another roster of this
                one; or the record may not have become durable.
        """
        record = RosterAgreed(roster.consortium, roster.epoch, roster.hash)
        if self._state.has_agreed(record):
            return
        try:
            self.remember(record)
        except Refusal as refusal:
            raise LedgerError(
                f"the roster of epoch {roster.epoch} is not one to go on with: {refusal}",
                hint="install the roster that the consortium agreed to last and pin it: "
                "veilsum pki check-roster ROSTER --pin SITE_TOML; a consortium that starts anew "
                "counts its epochs on from the old ones",
            ) from refusal

    def check_never_sent(self, task_id: str, tag: bytes) -> None:
        """As of LedgerState."""
        self._state.check_never_sent(task_id, tag)

    def updates_sent(self, task_id: str, run_id: str, round_number: int) -> int:
        """As of LedgerState."""
        return self._state.updates_sent(task_id, run_id, round_number)

    def last_survivors(self, task_id: str) -> frozenset[str] | None:
        """As of LedgerState."""
        return self._state.last_survivors(task_id)

    def check(self, record: LedgerRecord) -> None:
        """As of LedgerState; nothing is written."""
        self._state.check(record)

    def knows_model(self, model: ModelKnown) -> bool:
        """As of LedgerState."""
        return self._state.knows_model(model)

    def knows_task(self, task_id: str | None) -> bool:
        """As of LedgerState."""
        return self._state.knows_task(task_id)

    def last_ack(self, task_id: str, run_id: str) -> AckSent | None:
        """As of LedgerState."""
        return self._state.last_ack(task_id, run_id)

    def has_rejected(self, result_digest: bytes) -> bool:
        """As of LedgerState."""
        return self._state.has_rejected(result_digest)

    def vote_in(self, attempt: Attempt) -> bytes | None:
        """As of LedgerState."""
        return self._state.vote_in(attempt)

    def last_model(self, task_id: str) -> bytes | None:
        """As of LedgerState."""
        return self._state.last_model(task_id)

    def tag_of(self, update: Mapping[str, NDArray[Any]]) -> bytes:
        """Names the values of an update without telling them, 32 bytes.

        A function of the bytes of the tensors only. What the coordinator plans (clip, bits,
        rotation, weight cap, metrics, order and names of tensors) has no part in it: otherwise
        it could have the same update under another tag.
        """
        tags = sorted(self._keyed(_host_bytes(array, name)) for name, array in update.items())
        return self._keyed(b"".join(tags))

    def _keyed(self, data: bytes | memoryview) -> bytes:
        with memoryview(self._key) as key:
            state = HMAC(key, SHA256())
            state.update(data)
            return state.finalize()


def _host_bytes(value: Any, name: str) -> memoryview:
    if not isinstance(value, np.ndarray | np.generic) and _native.is_device_array(value):
        value = on_its_device(value, name).to_host()
    return np.ascontiguousarray(value).reshape(-1).view(np.uint8).data
