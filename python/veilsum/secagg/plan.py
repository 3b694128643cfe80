"""The plan of one masked round: everything coordinator and sites must agree on.

A plan checks itself completely when it is made. A site rebuilds it from the manifest it
received and so repeats every check; nothing in a round is taken from anywhere else.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from functools import cached_property

from veilsum import control
from veilsum.aggregate.ring_spec import METRIC_STEPS, WORD_BITS, RingSpec
from veilsum.errors import DecodeError
from veilsum.model import ModelLayout
from veilsum.roster import Roster
from veilsum.secagg.keys import Label, digest, length_prefixed
from veilsum.secagg.manifest import (
    MASK_GENERATORS,
    MAX_METRICS,
    MAX_STEP_RULE_BYTES,
    OVERRANGE,
    read_manifest,
    write_manifest,
)
from veilsum.secagg.thresholds import (
    check_clips,
    check_thresholds,
    require,
    share_threshold,
    smallest_ring,
    usual_colluders,
    vote_quorum,
)
from veilsum.secagg.wire import DIGEST_BYTES, MAX_NAME_BYTES

_CHUNK_STEP = 4096  # chunks cover whole mask tiles of 512 and whole tiles of the mean
_CHUNK_LIMIT = 2**20


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One attempt at one masked round.

    Attributes:
        roster: who the members are; the manifest carries its hash only.
        cohort: invited sites, sorted by the bytes of their names. n is their number.
        task_id, run_id, round_number, attempt: name the attempt. Rounds count from 1.
        layout: tensors of the model.
        model_hash, previous_result: of the model to train from and of the last result; 32 bytes.
        task_hash: SHA-256 of the canonical task settings.
        nonce: 32 public bytes that no other attempt has.
        min_sites: fewest updates a published sum may have.
        colluders: c, sites that may help a malicious coordinator.
        vote_quorum: q, votes a survivor set needs. More than (n+c)/2.
        share_threshold: t, shares that rebuild a secret. More than c, at most q.
        mask_generator: what all masks of the attempt are made with.
        value_bits: bits of one site's step, sign included.
        ring_bits: b, width of a masked word of stream 1.
        headroom: h, bits of the ring left free for the range check of the sum.
        clip: largest |update value|, model units; with a rotation the largest |rotated value|.
        clips: one per floating-point tensor in layout order, `clip` being the largest; or none.
        overrange: what a site does with a larger one.
        weight_cap: largest weight a site may claim.
        integer_limit: largest |update value| of integer tensors.
        metrics: names of the metrics in the sum, in order.
        metric_limit: largest |metric|.
        chunk_coordinates: of every chunk but the last of a group.
        hadamard: coordinates that a rotation of floating-point tensors mixes before they are
            rounded: 1024 or 4096; 0 for none.
        step_rule: what becomes of the mean: the server's optimizer and its settings
            (RunSpec.step_rule). Empty: not stated, so no site can follow the step.
        state_hash: of what that optimizer remembers before the step, 32 bytes; zeros: nothing.

    Raises:
        ConfigError: any field is out of bounds, the thresholds do not protect, or a sum
            could leave its ring.
    """

    roster: Roster
    cohort: tuple[str, ...]
    task_id: str
    run_id: str
    round_number: int
    attempt: int
    layout: ModelLayout
    model_hash: bytes
    previous_result: bytes
    task_hash: bytes
    nonce: bytes
    min_sites: int
    colluders: int
    vote_quorum: int
    share_threshold: int
    mask_generator: control.MaskGenerator = "chacha20"
    value_bits: int
    ring_bits: int
    headroom: int = 2
    clip: float
    clips: tuple[float, ...] = ()
    overrange: control.Overrange = "refuse"
    weight_cap: int
    integer_limit: int = 2**20
    metrics: tuple[str, ...] = ()
    metric_limit: int = 2**16
    chunk_coordinates: int = 65_536
    hadamard: int = 0
    step_rule: bytes = b""
    state_hash: bytes = bytes(DIGEST_BYTES)

    def __post_init__(self) -> None:
        object.__setattr__(self, "cohort", tuple(sorted(self.cohort, key=str.encode)))
        _check_names(self)
        check_thresholds(
            sites=len(self.cohort),
            min_sites=self.min_sites,
            colluders=self.colluders,
            quorum=self.vote_quorum,
            threshold=self.share_threshold,
        )
        require(
            self.mask_generator in MASK_GENERATORS,
            f"mask_generator must be one of {MASK_GENERATORS}, got {self.mask_generator!r}",
        )
        _check_float_ring(self)
        _check_word_sums(self)

    @classmethod
    def for_round(
        cls,
        *,
        roster: Roster,
        cohort: tuple[str, ...],
        spec: control.RunSpec,
        run_id: str,
        round_number: int,
        attempt: int,
        layout: ModelLayout,
        model_hash: bytes,
        previous_result: bytes,
        nonce: bytes,
        state_hash: bytes = bytes(DIGEST_BYTES),
    ) -> Plan:
        """Derives thresholds, ring and step rule from a run's settings.

        Raises:
            ConfigError: the settings cannot work for this cohort.
        """
        sites = len(cohort)
        colluders = spec.colluders
        if colluders is None:
            colluders = usual_colluders(len(roster.sites))
        headroom = 2
        return cls(
            roster=roster,
            cohort=cohort,
            task_id=spec.task_id,
            run_id=run_id,
            round_number=round_number,
            attempt=attempt,
            layout=layout,
            model_hash=model_hash,
            previous_result=previous_result,
            task_hash=control.task_hash(spec.task),
            nonce=nonce,
            min_sites=spec.min_sites,
            colluders=colluders,
            vote_quorum=vote_quorum(sites, colluders),
            share_threshold=share_threshold(spec.share_profile, sites, colluders),
            mask_generator=spec.mask_generator,
            value_bits=spec.value_bits,
            ring_bits=smallest_ring(sites, 2 ** (spec.value_bits - 1) - 1, headroom),
            headroom=headroom,
            clip=spec.clip,
            overrange=spec.overrange,
            weight_cap=spec.weight_cap,
            metrics=spec.metrics,
            hadamard=spec.hadamard,
            step_rule=spec.step_rule,
            state_hash=state_hash,
        )

    @property
    def step_limit(self) -> int:
        """Q: the largest |step| of one site, reached at the clip with the full weight."""
        return int(2 ** (self.value_bits - 1) - 1)

    @property
    def scale(self) -> float:
        """s: steps per model unit at the full weight."""
        return self.step_limit / self.clip

    @cached_property
    def tensor_clips(self) -> tuple[float, ...]:
        """The clip of each floating-point tensor, in layout order."""
        return self.clips or (self.clip,) * len(self.layout.native.offsets(1))

    @property
    def fewest_survivors(self) -> int:
        """A smaller survivor set is neither proposed nor voted for."""
        return max(self.vote_quorum, self.min_sites)

    @cached_property
    def ring(self) -> RingSpec:
        """How an update of this round becomes ring words, and how their sum is decoded."""
        return RingSpec(
            layout=self.layout,
            ring_bits=self.ring_bits,
            step_limit=self.step_limit,
            scales=tuple(self.step_limit / clip for clip in self.tensor_clips),
            weight_cap=self.weight_cap,
            integer_limit=self.integer_limit,
            metrics=self.metrics,
            metric_limit=self.metric_limit,
            chunk_coordinates=self.chunk_coordinates,
            mask_generator=self.mask_generator,
            hadamard=self.hadamard,
            rotation_key=self.rotation_key,
        )

    @cached_property
    def hash(self) -> bytes:
        """SHA-256 of the manifest, 32 bytes."""
        return hashlib.sha256(self.to_bytes()).digest()

    @cached_property
    def context(self) -> bytes:
        """ctx: names this attempt in every message, key and chunk. 32 bytes."""
        return digest(
            Label.CONTEXT,
            length_prefixed(self.roster.consortium),
            self.roster.hash,
            length_prefixed(self.task_id),
            struct.pack("<QI", self.round_number, self.attempt),
            self.hash,
        )

    @cached_property
    def rotation_key(self) -> bytes:
        """Of the attempt's rotation: public, and fixed before anyone has trained. 8 bytes."""
        return digest(Label.ROTATION, self.context)[:8]

    def to_bytes(self) -> bytes:
        """The manifest: all fields in a fixed encoding, the roster by its hash."""
        return write_manifest(self)

    @classmethod
    def from_bytes(cls, data: bytes, *, roster: Roster) -> Plan:
        """Rebuilds and re-checks a plan from its manifest.

        Raises:
            DecodeError: the bytes are not a canonical manifest.
            ConfigError: it was made for another roster, or its content cannot work.
        """
        plan = read_manifest(data, roster, cls)
        if plan.to_bytes() != data:
            raise DecodeError("the manifest is not in canonical form")
        return plan


def _is_name(name: str) -> bool:
    return 1 <= len(name.encode()) <= MAX_NAME_BYTES and name.isprintable()


def _check_names(plan: Plan) -> None:
    strangers = sorted(set(plan.cohort) - set(plan.roster.sites))
    require(not strangers, f"the cohort names sites outside the roster: {strangers}")
    require(len(set(plan.cohort)) == len(plan.cohort), "the cohort names a site twice")
    for name in (plan.task_id, plan.run_id, *plan.metrics):
        require(_is_name(name), f"a name must be 1 to 64 printable bytes, got {name!r}")
    require(
        len(set(plan.metrics)) == len(plan.metrics) <= MAX_METRICS,
        f"metrics must be at most {MAX_METRICS} different names",
    )
    require(1 <= plan.round_number < 2**63, f"rounds count from 1, got {plan.round_number}")
    require(0 <= plan.attempt < 2**32, f"attempt must be 0 to 2**32-1, got {plan.attempt}")
    for field in ("model_hash", "previous_result", "task_hash", "nonce", "state_hash"):
        size = len(getattr(plan, field))
        require(size == DIGEST_BYTES, f"{field} must have {DIGEST_BYTES} bytes, got {size}")
    size = len(plan.step_rule)
    require(
        size <= MAX_STEP_RULE_BYTES,
        f"step_rule must have at most {MAX_STEP_RULE_BYTES} bytes, got {size}",
    )


def _check_float_ring(plan: Plan) -> None:
    require(2 <= plan.value_bits <= 32, f"value_bits must be 2 to 32, got {plan.value_bits}")
    check_clips(plan.clip, plan.clips, len(plan.layout.native.offsets(1)))
    require(plan.overrange in OVERRANGE, f"overrange must be one of {OVERRANGE}")
    require(2 <= plan.headroom <= 32, f"headroom must be 2 to 32 bits, got {plan.headroom}")
    needed = smallest_ring(len(plan.cohort), plan.step_limit, plan.headroom)
    require(
        needed <= plan.ring_bits <= WORD_BITS,
        f"{len(plan.cohort)} sites with steps of {plan.value_bits} bits and {plan.headroom} bits "
        f"of headroom need a ring of {needed} to 64 bits, got {plan.ring_bits}",
        hint="lower value_bits or raise ring_bits",
    )
    size = plan.chunk_coordinates
    require(
        0 < size <= _CHUNK_LIMIT and size % _CHUNK_STEP == 0,
        f"chunk_coordinates must be a multiple of {_CHUNK_STEP} up to {_CHUNK_LIMIT}, got {size}",
    )
    control.require_hadamard(plan.hadamard)


def _check_word_sums(plan: Plan) -> None:
    """Sums of 64-bit words must stay below 2^62: no wrap, and a bit left for the range check."""
    require(1 <= plan.weight_cap < 2**31, f"weight_cap must be 1 to 2**31-1, got {plan.weight_cap}")
    for name in ("integer_limit", "metric_limit"):
        limit = getattr(plan, name)
        require(1 <= limit < 2**62, f"{name} must be 1 to 2**62-1, got {limit}")
    weights = len(plan.cohort) * plan.weight_cap
    sums = {"weights": weights}
    if plan.layout.native.group_size(2):
        sums["integer tensors"] = weights * plan.integer_limit
    if plan.metrics:
        sums["metrics"] = weights * plan.metric_limit * METRIC_STEPS
    for what, largest in sums.items():
        require(
            largest < 2**62,
            f"the sum of the {what} can reach {largest}, which does not fit below 2**62",
            hint="lower weight_cap, integer_limit or metric_limit",
        )
