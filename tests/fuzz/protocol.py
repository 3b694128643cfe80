"""Fuzz targets of the protocol: every parser of what a peer sends, and the checks behind them.

A target takes any bytes. It raises AssertionError where a property does not hold, and lets through
what a parser raises against its word, so that the fuzzer sees both. Seeds come from a round that is
played when the target is made: no file holds a format of yesterday.
"""

from __future__ import annotations

import hashlib
import importlib
import pkgutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import fields, replace
from functools import partial
from typing import ClassVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from reference.codecs import crc32c
from support.audits import AuditedRound
from support.faults import wrong_answer
from support.links import round_before
from support.rosters import roster_of, signed_by
from support.secagg import (
    NAMES,
    Federation,
    consortium,
    make_contributions,
    make_plan,
    seal,
    signing_key,
    small_arrays,
)
from veilsum import secagg
from veilsum._native import Secret
from veilsum.errors import AuditError, ConfigError, DecodeError, PeerError
from veilsum.model import ModelLayout
from veilsum.pki.roster_signing import SignedRoster
from veilsum.roster import Roster, key_id
from veilsum.secagg.complaints import Accusation, Complaint, Justification
from veilsum.secagg.envelope import Envelope
from veilsum.secagg.evidence import Evidence, Fault
from veilsum.secagg.keys import BOX_BYTES
from veilsum.secagg.manifest import write_manifest
from veilsum.secagg.masks import MaskKeys
from veilsum.secagg.messages import (
    RoundOpen,
    SealedDeal,
    SurvivorCertificate,
    SurvivorVote,
    kind_of_message,
)
from veilsum.secagg.payload import COORDINATOR, Message, kind_of, read_payload
from veilsum.secagg.phases import HeldShares, Voted
from veilsum.secagg.plan import Plan
from veilsum.secagg.policy import LocalPolicy, Refusal
from veilsum.secagg.receiver import InputReceiver, input_header
from veilsum.secagg.refusals import RefusalCode, Refuse
from veilsum.secagg.site_checks import check_certificate
from veilsum.secagg.transcript_file import Transcript
from veilsum.secagg.upload import encode_upload
from veilsum.secagg.verifying import Engine, verify


class Input:
    """The fuzzer's bytes, taken from the front; zeros when they are used up."""

    def __init__(self, data: bytes) -> None:
        self._left = memoryview(data)

    def __bool__(self) -> bool:
        return bool(self._left)

    def below(self, bound: int) -> int:
        """Two bytes, big-endian, of which the bound takes the rest."""
        head, self._left = self._left[:2], self._left[2:]
        return int.from_bytes(bytes(head).ljust(2, b"\0"), "big") % bound

    def rest(self) -> bytes:
        return bytes(self._left)


class Target(ABC):
    """One program for the fuzzer."""

    name: ClassVar[str]

    @abstractmethod
    def seeds(self) -> Iterator[bytes]:
        """First inputs."""

    @abstractmethod
    def run(self, data: bytes) -> None:
        """One input."""


def cut_short(seeds: Iterator[bytes]) -> Iterator[bytes]:
    """Each, and captures of it that end too early."""
    for seed in seeds:
        yield seed
        yield seed[: len(seed) // 2]
        yield seed[:-1]


def played() -> Federation:
    """A whole round of four sites with one that is lost before its upload."""
    federation = Federation(make_plan(4))
    federation.hold("masked-input", origin="oslo")
    federation.from_coordinator(federation.coordinator.lost("oslo", "fell silent"))
    federation.run()
    federation.from_coordinator(federation.coordinator.close_phase())
    federation.run()
    federation.publish()
    federation.run()
    return federation


def troubled() -> Iterator[Message]:
    """Messages that an untroubled first round does not have."""
    plan = make_plan(4, round_number=2)
    site, other = plan.cohort[:2]
    before = round_before(make_plan(4), any_key, model_hash=bytes(32)).link
    yield RoundOpen(plan.context, COORDINATOR, plan.to_bytes(), before)
    yield Refuse(plan.context, site, next(iter(RefusalCode)))
    complaint = Complaint(
        plan.context, site, bytes(32), other, bytes(32), bytes(BOX_BYTES), bytes(32)
    )
    yield complaint
    yield Accusation(plan.context, COORDINATOR, Envelope.from_bytes(seal(complaint)))
    yield Justification(plan.context, other, bytes(32), site, bytes(32))


def any_key(sender: str) -> Ed25519PrivateKey:
    key: Ed25519PrivateKey = signing_key("" if sender == "coordinator" else sender)
    return key


def all_kinds() -> list[type[Message]]:
    """Every message type that there is, by its name."""
    for module in pkgutil.iter_modules(secagg.__path__, "veilsum.secagg."):
        importlib.import_module(module.name)
    # A class with slots is made twice; its module has the one that counts.
    kinds = [
        kind
        for kind in Message.__subclasses__()
        if getattr(sys.modules[kind.__module__], kind.__name__) is kind
    ]
    return sorted(kinds, key=lambda kind: kind.kind)


# --- F1: envelopes and payloads -----------------------------------------------------------


def posted(federation: Federation) -> list[bytes]:
    """Everything that was sent in a round, uploads by their headers."""
    return [item.header if isinstance(item, secagg.UploadInput) else item
            for _, _, item in federation.sent]  # fmt: skip


class Messages(Target):
    """The first byte chooses a parser; the rest is what it gets."""

    name = "messages"

    def __init__(self) -> None:
        self._kinds = all_kinds()
        self._signers = {key_id(key): key for key in map(self._public_key, (COORDINATOR, *NAMES))}
        messages = posted(played())
        self._deals = [one for one in messages if kind_of_message(one) == SealedDeal.kind]
        self._envelopes = [one for one in messages if one not in self._deals]
        self._envelopes += [seal(message) for message in troubled()]
        headers = [SealedDeal.from_bytes(one).header for one in self._deals]
        opened = [*map(Envelope.from_bytes, self._envelopes), *headers]
        self._payloads = {one.payload for one in opened}
        self._originals = {one.to_bytes() for one in opened}

    @staticmethod
    def _public_key(sender: str) -> bytes:
        return bytes(signing_key(sender).public_key().public_bytes_raw())

    def seeds(self) -> Iterator[bytes]:
        kinds = [kind.kind for kind in self._kinds]
        payloads = (bytes([kinds.index(kind_of(one))]) + one for one in sorted(self._payloads))
        yield from cut_short(payloads)
        yield from cut_short(bytes([254]) + one for one in sorted(self._originals))
        yield from cut_short(bytes([255]) + one for one in self._deals)

    def run(self, data: bytes) -> None:
        choice, body = (data[0], data[1:]) if data else (0, b"")
        if choice == 254:
            self._envelope(body)
        elif choice == 255:
            self._deal(body)
        else:
            self._payload(self._kinds[choice % len(self._kinds)], body)

    def _payload(self, kind: type[Message], data: bytes) -> None:
        try:
            message = read_payload(kind, data, context=None)
        except DecodeError:
            assert data not in self._payloads or kind_of(data) != kind.kind, "refuses an original"
            return
        assert message.to_payload() == data, "a payload has two encodings"
        assert kind_of(data) == kind.kind
        repr(message)

    def _envelope(self, data: bytes) -> None:
        try:
            kind_of_message(data)
            envelope = Envelope.from_bytes(data)
            kind = kind_of(envelope.payload)
        except DecodeError:
            assert data not in self._originals, "refuses an original"
            return
        assert envelope.to_bytes() == data, "an envelope has two encodings"
        public_key = self._signers.get(envelope.key_id)
        if public_key is None:
            return
        try:
            envelope.verify(kind, public_key)
        except DecodeError:
            assert data not in self._originals, "refuses an original's signature"
            return
        assert data in self._originals, "takes other bytes for signed ones"

    def _deal(self, data: bytes) -> None:
        try:
            deal = SealedDeal.from_bytes(data)
        except DecodeError:
            assert data not in self._deals, "refuses an original"
            return
        assert deal.to_bytes() == data, "a deal has two encodings"


# --- F2: the chunks of an upload ---------------------------------------------------------


class Chunks(Target):
    """Two bytes each choose what is done and to which chunk, and what with it. A model of what
    must come of it is kept beside the receiver."""

    name = "chunks"
    _CHUNK = 4096
    _SIZE = 2 * _CHUNK + 1000
    _ID = 7

    def __init__(self) -> None:
        layout = ModelLayout.from_arrays(small_arrays(0, self._SIZE))
        self._plan = make_plan(3, layout=layout, chunk_coordinates=self._CHUNK)
        self._site = self._plan.cohort[0]
        given = make_contributions(self._plan, lambda seed: small_arrays(seed, self._SIZE))
        encoded = encode_upload(
            self._plan,
            given[self._site],
            MaskKeys([Secret.from_bytes(bytes([9]) * 32)], [1]),
            update_id=self._ID,
            threads=1,
        )
        self._genuine = [bytes(chunk) for chunk in encoded.chunks]
        self._header = input_header(self._plan, self._site, bytes(32), self._genuine)

    def seeds(self) -> Iterator[bytes]:
        count = len(self._genuine)
        in_order = [pair(0, place) for place in range(count)]
        yield b"".join(in_order)
        for action in range(1, 6):
            for place in (0, count - 1):
                steps = [*in_order[:place], pair(action, place) + pair(0, 70), *in_order[place:]]
                yield b"".join(steps)
        yield b"".join(reversed(in_order))
        yield b"".join(in_order[:-1])
        yield b"".join(step + step for step in in_order)

    def run(self, data: bytes) -> None:
        at = Input(data)
        receiver = InputReceiver(self._plan, self._site, self._header, self._ID)
        taken: list[bytes] = []
        while at:
            chunk = self._changed(at, at.below(2**16))
            self._add(receiver, taken, chunk)
        complete = taken == self._genuine
        try:
            receiver.finish()
        except PeerError:
            assert not complete, "refuses a complete upload"
            return
        assert complete, "takes an upload that is not the one whose root was signed"

    def _changed(self, at: Input, choice: int) -> bytes:
        action, place = choice >> 8, choice & 255
        chunk = bytearray(self._genuine[place % len(self._genuine)])
        match action % 6:
            case 1:
                chunk[at.below(len(chunk))] ^= 1 + at.below(255)
            case 2:
                chunk[64 + at.below(len(chunk) - 64)] ^= 1 + at.below(255)
                repair(chunk)
            case 3:
                del chunk[at.below(len(chunk)) :]
            case 4:
                chunk += bytes(1 + at.below(64))
            case 5:
                chunk[at.below(60)] ^= 1 + at.below(255)
                repair(chunk)
        return bytes(chunk)

    def _add(self, receiver: InputReceiver, taken: list[bytes], chunk: bytes) -> None:
        """Taken: the next one, or one that came before, as long as nothing but values differs."""
        was = len(taken)
        try:
            receiver.add(chunk)
        except (DecodeError, PeerError):
            assert chunk not in taken, "refuses a chunk that it has"
            assert chunk not in self._genuine[was : was + 1], "refuses the next chunk"
            assert receiver.next_index == was, "a chunk that was refused counts"
            return
        if receiver.next_index == was:
            assert chunk in taken, "takes other bytes for a chunk that came before"
            return
        assert receiver.next_index == was + 1
        assert len(chunk) == len(self._genuine[was]), "takes a chunk of another size"
        assert chunk[:60] == self._genuine[was][:60], "takes a chunk with another header"
        taken.append(chunk)


def pair(high: int, low: int) -> bytes:
    return bytes([high, low])


def repair(chunk: bytearray) -> None:
    """Makes the checksum fit again (docs/format.md)."""
    chunk[60:64] = crc32c(bytes(chunk[:60]) + bytes(chunk[64:])).to_bytes(4, "little")


# --- F5: certificates ------------------------------------------------------------------------


class Certificates(Target):
    """Each pair of bytes puts one vote into a certificate: whose, and what is wrong with it."""

    name = "certificates"
    _T3 = hashlib.sha256(b"the set").digest()
    _OTHER = hashlib.sha256(b"another set").digest()

    def __init__(self) -> None:
        self._plan = make_plan(5, colluders=1)
        dealers = self._plan.cohort[:4]  # the last dealt no shares
        shares = {site: Secret.zeros(32) for site in dealers}
        self._phase = Voted(self._T3, frozenset(dealers), HeldShares(shares, shares))
        self._good = {site: self._vote(site, self._T3) for site in dealers}
        vote, stranger = self._vote, Ed25519PrivateKey.from_private_bytes(bytes([7]) * 32)
        self._makers: list[Callable[[str], Envelope]] = [
            partial(vote, t3=self._T3),
            partial(vote, t3=self._OTHER),
            lambda site: vote(site, self._T3, context=bytes(32)),
            lambda site: vote(site, self._T3, signer=NAMES[(NAMES.index(site) + 1) % 5]),
            lambda site: Envelope.sign(
                SurvivorVote.kind,
                SurvivorVote(self._plan.context, site, self._T3).to_payload(),
                stranger,
            ),
            lambda site: replace(vote(site, self._T3), key_id=bytes(8)),
            lambda site: Envelope.from_bytes(
                seal(SurvivorCertificate(self._plan.context, site, self._T3, ()))
            ),
        ]
        self._votes = {
            (maker, site): self._makers[maker](site)
            for maker in range(len(self._makers))
            for site in NAMES[:6]
        }

    def _vote(
        self, site: str, t3: bytes, *, context: bytes | None = None, signer: str | None = None
    ) -> Envelope:
        context = self._plan.context if context is None else context
        return Envelope.from_bytes(seal(SurvivorVote(context, site, t3), signer=signer))

    def seeds(self) -> Iterator[bytes]:
        honest = [pair(0, site) for site in range(4)]
        yield b"\0" + b"".join(honest)
        yield b"\1" + b"".join(honest)
        yield b"\0" + b"".join(honest[:3])
        yield b"\0" + b"".join([*honest, honest[-1]])
        yield b"\0" + b"".join([honest[1], honest[0], *honest[2:]])
        for wrong in range(1, 8):
            for site in (0, 4, 5):
                yield b"\0" + b"".join([*honest[:3], pair(wrong, site) + pair(0, 70)])

    def run(self, data: bytes) -> None:
        at = Input(data[1:])
        t3 = self._OTHER if data[:1] == b"\1" else self._T3
        votes = []
        while at and len(votes) < 12:
            votes.append(self._next(at))
        message = SurvivorCertificate(self._plan.context, COORDINATOR, t3, tuple(votes))
        certifies = t3 == self._T3 and self._certifies(votes)
        try:
            check_certificate(self._plan, self._phase, message)
        except (Refusal, DecodeError):
            assert not certifies, "refuses a certificate"
            return
        assert certifies, "takes a certificate without a quorum of votes for its set"

    def _next(self, at: Input) -> Envelope:
        choice = at.below(2**16)
        maker, site = choice >> 8, NAMES[(choice & 255) % 6]
        maker %= len(self._makers) + 1
        if maker < len(self._makers):
            return self._votes[maker, site]
        data = bytearray(self._votes[0, site].to_bytes())
        data[4 + at.below(len(data) - 4)] ^= 1 + at.below(255)  # its length stays
        return Envelope.from_bytes(bytes(data))

    def _certifies(self, votes: list[Envelope]) -> bool:
        """A quorum of good votes, one of a site, and nothing else, sorted."""
        owners = {vote.to_bytes(): site for site, vote in self._good.items()}
        voters = [owners.get(vote.to_bytes(), "") for vote in votes]
        return (
            "" not in voters
            and voters == sorted(set(voters))
            and len(voters) >= self._plan.vote_quorum
        )


# --- F6: manifests against a policy ------------------------------------------------------------


class Manifests(Target):
    """A manifest, and what a site's policy says to it. The first byte says whether it follows, or
    is a plan's with some of its numbers replaced: pairs of which number, and by what. Most are
    replaced by a neighbour, as that is where bounds are."""

    name = "manifests"

    _STEPS = (-3, -2, -1, 1, 2, 3)
    _VALUES = (0, 1, 2, 3, 4, 5, 8, 255, 2**16, 2**31)

    def __init__(self) -> None:
        self._roster = consortium().roster
        layout = ModelLayout.from_arrays(small_arrays(0))
        clips = make_plan(4, layout=layout, clip=1.0, clips=(1.0,))
        self._plans = [
            make_plan(4),
            make_plan(5, colluders=2, hadamard=1024, step_rule=b"{}", state_hash=bytes([1]) * 32),
            make_plan(8, colluders=2, share_threshold=4),
            make_plan(8, value_bits=8, overrange="clip", mask_generator="aes256ctr"),
            clips,
        ]
        self._policy = LocalPolicy(
            min_sites=4,
            min_vote_quorum=3,
            max_weight_cap=1000,
            task_ids=frozenset({"diagnosis"}),
            mask_generators=frozenset({"chacha20"}),
            min_invited=4,
        )
        self._known = {plan.to_bytes(): plan.context for plan in self._plans}
        values = vars(self._plans[0])
        self._numbers = [one.name for one in fields(Plan) if type(values[one.name]) is int]

    def seeds(self) -> Iterator[bytes]:
        yield from cut_short(b"\1" + one for one in self._known)
        for plan in range(len(self._plans)):
            for place in range(len(self._numbers)):
                yield b"\0" + b"".join(number.to_bytes(2, "big") for number in (plan, place, 2))

    def run(self, data: bytes) -> None:
        if data[:1] != b"\0":
            self._check(data[1:])
            return
        at = Input(data[1:])
        plan = copy(self._plans[at.below(len(self._plans))])
        while at:
            name = self._numbers[at.below(len(self._numbers))]
            choices = (*(getattr(plan, name) + step for step in self._STEPS), *self._VALUES)
            object.__setattr__(plan, name, choices[at.below(len(choices))])
        try:
            manifest = write_manifest(plan)
        except (OverflowError, ValueError):  # a number that has no place in a manifest
            return
        self._check(manifest)

    def _check(self, data: bytes) -> None:
        try:
            plan = Plan.from_bytes(data, roster=self._roster)
        except (DecodeError, ConfigError):
            assert data not in self._known, "refuses a plan's own manifest"
            return
        assert plan.to_bytes() == data, "a manifest has two encodings"
        if data not in self._known:
            assert plan.context not in self._known.values(), "two manifests have one context"
        self._protects(plan)
        try:
            self._policy.check(plan)
        except Refusal:
            return
        self._allowed(plan)

    @staticmethod
    def _protects(plan: Plan) -> None:
        """What holds of any plan: one survivor set, and no sum of one honest site."""
        invited = len(plan.cohort)
        assert set(plan.cohort) <= set(plan.roster.sites), "invites a stranger"
        assert len(set(plan.cohort)) == invited, "invites a site twice"
        assert 2 * plan.vote_quorum > invited + plan.colluders, "two sets can be certified"
        assert plan.colluders < plan.share_threshold <= plan.vote_quorum <= invited
        assert plan.fewest_survivors >= max(3, plan.colluders + 2), "an honest site stands alone"
        largest = invited * (2 ** (plan.value_bits - 1) - 1)
        assert 2**plan.ring_bits >= 4 * (2 * largest + 1), "a sum can leave its ring"

    @staticmethod
    def _allowed(plan: Plan) -> None:
        assert len(plan.cohort) >= 4, "too few invited"
        assert plan.fewest_survivors >= 4, "too few in a sum"
        assert plan.vote_quorum >= 3
        assert plan.colluders >= len(NAMES) // 3, "fewer colluders than a third of the roster"
        assert plan.attempt < 3, "an attempt too many"
        assert plan.weight_cap <= 1000
        assert plan.task_id == "diagnosis"
        assert plan.mask_generator == "chacha20"


# --- F10: rosters --------------------------------------------------------------------------


class Rosters(Target):
    """A roster file, signed and unsigned, and who stands for it."""

    name = "rosters"

    def __init__(self) -> None:
        self._first = roster_of(NAMES[:4])
        second = roster_of(NAMES[1:5], 2, self._first)
        self._signed = signed_by(second, NAMES[:4], self._first)
        self._files = [
            self._signed.to_bytes() + b"\n",
            signed_by(second, NAMES[:2], self._first).to_bytes(),
            SignedRoster(self._first).to_bytes(),
        ]

    def seeds(self) -> Iterator[bytes]:
        yield from cut_short(iter([*self._files, self._first.to_bytes()]))

    def run(self, data: bytes) -> None:
        try:
            self._well_formed(Roster.from_bytes(data), data)
        except ConfigError:
            assert data != self._first.to_bytes(), "refuses a roster"
        try:
            signed = SignedRoster.from_bytes(data)
        except ConfigError:
            assert data not in self._files, "refuses a roster's own file"
            return
        assert signed.to_bytes() == data.strip(), "a signed roster has two encodings"
        self._well_formed(signed.roster, signed.roster.to_bytes())
        try:
            signed.check(self._first)
        except ConfigError:
            assert data != self._files[0], "refuses a roster that is signed by enough"
            return
        assert signed.roster.hash == self._signed.roster.hash, "nobody signed this roster"

    @staticmethod
    def _well_formed(roster: Roster, data: bytes) -> None:
        assert roster.to_bytes() == data.strip(), "a roster has two encodings"
        assert type(roster.epoch) is int, "an epoch is no integer"
        texts = [roster.consortium, *(text for e in roster.entries for text in (e.site, e.region))]
        assert {type(text) for text in texts} == {str}, "a text is none"


# --- transcripts ------------------------------------------------------------------------------


class Transcripts(Target):
    """A transcript, and what it proves. Behind a zero: a good one with some of its bytes changed,
    pairs of where and by what."""

    name = "transcripts"

    def __init__(self) -> None:
        audited = AuditedRound(make_plan(3))
        self._whole = bytes(audited.transcript())
        self._roster = consortium().roster
        self._digest = audited.federation.result.digest

    def seeds(self) -> Iterator[bytes]:
        yield from cut_short(iter([self._whole]))
        for place in range(0, len(self._whole), len(self._whole) // 16):
            yield b"\0" + place.to_bytes(2, "big") + b"\0\1"

    def run(self, data: bytes) -> None:
        if data[:1] == b"\0":
            data = self._changed(Input(data[1:]))
        try:
            transcript = Transcript(data, roster=self._roster)
            found = verify(transcript, Engine(bytes(32)), per_stream=None)
        except (DecodeError, ConfigError, PeerError, AuditError):
            assert data != self._whole, "refuses a transcript"
            return
        assert found.digest == self._digest, "proves another sum"

    def _changed(self, at: Input) -> bytes:
        changed = bytearray(self._whole)
        while at:
            changed[at.below(len(changed))] ^= at.below(256)
        return bytes(changed)


# --- evidence ----------------------------------------------------------------------------------


class Evidences(Target):
    """Evidence of one site's fault, and whom else it could be made to convict. Behind a zero: what
    a round without a fault could be made to show, put together from its messages."""

    name = "evidence"

    def __init__(self) -> None:
        plan = make_plan(4, colluders=1, share_threshold=2)
        self._roster = plan.roster
        federation = Federation(plan)
        answer = federation.hold("unmask-shares", origin=NAMES[1])
        federation.deliver(NAMES[1], "", wrong_answer(answer, NAMES[3]))
        blamed = [e for e in federation.coordinator_effects if isinstance(e, secagg.Blamed)]
        self._real = blamed[0].evidence
        self._shown = secagg.check_evidence(self._real, self._roster)
        assert isinstance(self._shown, secagg.Guilty)
        round_ = played()
        self._manifest = round_.plan.to_bytes()
        self._accused = (COORDINATOR, *round_.plan.cohort)
        messages = posted(round_)
        deals = [one for one in messages if kind_of_message(one) == SealedDeal.kind]
        headers = [SealedDeal.from_bytes(one).header for one in deals]
        others = [Envelope.from_bytes(one) for one in messages if one not in deals]
        self._signed = sorted({*headers, *others}, key=Envelope.to_bytes)
        self._papers = (*Evidence.from_bytes(self._real).papers, bytes(32), self._manifest)

    def seeds(self) -> Iterator[bytes]:
        yield from cut_short(iter([self._real]))
        for fault in range(len(Fault)):
            yield b"\0" + b"".join(
                number.to_bytes(2, "big") for number in (fault, 1, 2, 3, 4, 1, 0)
            )

    def run(self, data: bytes) -> None:
        if data[:1] == b"\0":
            shown = secagg.check_evidence(self._put_together(Input(data[1:])), self._roster)
            assert isinstance(shown, secagg.Invalid), "convicts who did nothing"
            return
        try:
            assert Evidence.from_bytes(data).to_bytes() == data, "evidence has two encodings"
        except DecodeError:
            assert data != self._real, "refuses evidence"
        found = secagg.check_evidence(data, self._roster)
        if isinstance(found, secagg.Invalid):
            assert data != self._real, "evidence shows nothing"
        else:
            assert found == self._shown, "convicts who did nothing"

    def _put_together(self, at: Input) -> bytes:
        fault = list(Fault)[at.below(len(Fault))]
        accused = self._accused[at.below(len(self._accused))]
        signed = [self._signed[at.below(len(self._signed))] for _ in range(at.below(6))]
        papers = [self._papers[at.below(len(self._papers))] for _ in range(at.below(4))]
        return Evidence(fault, accused, self._manifest, tuple(signed), tuple(papers)).to_bytes()


TARGETS: tuple[type[Target], ...] = (
    Messages,
    Chunks,
    Certificates,
    Manifests,
    Rosters,
    Transcripts,
    Evidences,
)
"""Each is a program of its own: fuzz_protocol.py NAME."""
