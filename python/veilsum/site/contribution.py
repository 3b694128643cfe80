"""How a site turns its update into an upload, masked or plain.

Both kinds have the same few methods, so that the session's flow is written once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, assert_never

from numpy.typing import NDArray

from veilsum import _native, plain, secagg
from veilsum._native import Secret
from veilsum.codecs import zstd
from veilsum.codecs.error_feedback import Residual
from veilsum.codecs.families import CodecSettings
from veilsum.control import (
    Decline,
    PlainPlan,
    ProtocolMessage,
    RoundId,
    RoundOpened,
    UpdateHeader,
    task_hash,
)
from veilsum.errors import ConfigError
from veilsum.model import ModelLayout
from veilsum.site.effects import KeepEvidence, Note, SendToCoordinator, SiteEffect, Upload


@dataclass(frozen=True)
class LocalUpdate:
    """What a site contributes to one round.

    Attributes:
        arrays: trained minus received, one array per tensor.
        weight: number of examples.
        metrics: those the round asks for, finite.
        rounding: 32 secret bytes for stochastic rounding.
    """

    arrays: Mapping[str, NDArray[Any]] = field(repr=False)
    weight: int
    metrics: Mapping[str, float] = field(repr=False)
    rounding: Secret


@dataclass(frozen=True, slots=True)
class ModelTerms:
    """What a plan says about the model to train from, and which metrics it asks for.

    Attributes:
        state_hash: of what the server's optimizer remembers beside the model; None in a plain
            round, which does not say.
    """

    layout: bytes
    model_hash: bytes
    metrics: tuple[str, ...]
    state_hash: bytes | None = None


class Contribution(Protocol):
    """One site's part in one round, from the invitation to the upload.

    Attributes:
        ready: whether contribute() may be called.
        over: whether the site has left the round by itself.
        result: of a masked round, while it awaits acknowledge() or reject().
        plan: of a masked round.
    """

    ready: bool
    over: bool
    result: secagg.ResultReady | None

    @property
    def plan(self) -> secagg.Plan | None: ...

    @property
    def terms(self) -> ModelTerms: ...

    def message(self, payload: bytes) -> list[SiteEffect]:
        """Takes a protocol message of the coordinator."""

    def contribute(self, update: LocalUpdate) -> list[SiteEffect]:
        """Encodes the update, once.

        Raises:
            ConfigError: it does not fit the plan; nothing was encoded.
            DeviceError: the device that encodes failed; nothing left the site.
        """

    def acknowledge(self, level: int) -> list[SiteEffect]:
        """The result is what it should be, as far as `level` says (secagg.result_messages)."""

    def reject(self, reason: str) -> list[SiteEffect]:
        """The result is wrong; `reason` goes to the coordinator."""

    def undo(self) -> None:
        """Takes back what contribute() has left at the site, for an update that did not count."""

    def close(self) -> None:
        """Wipes every secret. Idempotent."""


class PlainContribution:
    """See Contribution.

    Args:
        residual: what the codec lost of earlier updates of this run; None without feedback.

    Raises:
        ConfigError: the plan cannot work.
    """

    def __init__(
        self,
        plan: PlainPlan,
        round_id: RoundId,
        site: str,
        *,
        threads: int,
        residual: Residual | None = None,
    ) -> None:
        plain.check_plan(plan)
        self._residual = residual
        self._lost_before = residual.lost if residual else {}
        self._plan = plan
        self._layout = ModelLayout.from_bytes(plan.layout)
        self._round = round_id
        self._site = site
        self._threads = threads
        self.ready = True
        self.over = False
        self.result: secagg.ResultReady | None = None

    @property
    def plan(self) -> None:
        """Of a masked round."""

    @property
    def terms(self) -> ModelTerms:
        """Of the plan."""
        return ModelTerms(self._plan.layout, self._plan.model_hash, self._plan.metrics)

    def message(self, payload: bytes) -> list[SiteEffect]:
        """There are none in a plain round."""
        del payload
        self.over = True
        reason = "a protocol message came in a plain round"
        return [SendToCoordinator(Decline(self._round, "protocol", reason)), Note(reason)]

    def contribute(self, update: LocalUpdate) -> list[SiteEffect]:
        """Encodes with the plan's codec."""
        self._check(update)
        settings = plain.codec_settings(self._plan.codec, self._plan.clip)
        arrays = [update.arrays[name] for name, _, _ in self._layout.native.tensors]
        if self._residual is None:
            chunks = self._encoded(arrays, settings, update.rounding)
        else:
            corrected = self._residual.added_to(arrays, settings.limit or math.inf)
            chunks = self._encoded(corrected.arrays, settings, update.rounding)
            corrected.encoded_as(self._decoded(chunks, settings))
        if self._plan.compression == "zstd":
            chunks = [zstd.compressed(chunk, zstd.DEFAULT_LEVEL) for chunk in chunks]
        self.ready = False
        metrics = dict(update.metrics)
        header = UpdateHeader(
            self._round, self._update_id, len(chunks), update.weight, metrics, b""
        )
        return [Upload(header, tuple(chunks))]

    def acknowledge(self, level: int) -> list[SiteEffect]:
        """There is no result in a plain round."""
        del level
        return []

    def reject(self, reason: str) -> list[SiteEffect]:
        """There is no result in a plain round."""
        del reason
        return []

    def undo(self) -> None:
        """Gives the residual back what it was before this round."""
        if self._residual is not None:
            self._residual.lost = self._lost_before

    @property
    def _update_id(self) -> int:
        return plain.update_id(self._plan, self._round, self._site)

    def _encoded(
        self, arrays: Sequence[NDArray[Any]], settings: CodecSettings, rounding: Secret
    ) -> list[bytes | memoryview]:
        chunks = _native.encode_chunks(
            self._layout.native,
            arrays,
            codec=settings.number,
            scale=settings.scale,
            limit=settings.limit,
            rounding=rounding,
            least_error=False,
            plan_digest=self._plan.digest,
            update_id=self._update_id,
            chunk_coordinates=self._plan.chunk_coordinates,
            threads=self._threads,
        )
        return list(chunks)

    def _decoded(
        self, chunks: Sequence[bytes | memoryview], settings: CodecSettings
    ) -> dict[str, NDArray[Any]]:
        arrays = _native.decode_chunks(
            self._layout.native,
            chunks,
            codec=settings.number,
            scale=settings.scale,
            plan_digest=self._plan.digest,
            update_id=self._update_id,
            chunk_coordinates=self._plan.chunk_coordinates,
        )
        return dict(zip(self._layout.names, arrays, strict=True))

    def _check(self, update: LocalUpdate) -> None:
        if not 1 <= update.weight <= self._plan.weight_cap:
            raise ConfigError(
                f"this site's weight {update.weight} is outside 1 to {self._plan.weight_cap}, "
                "the round's weight_cap",
                hint="have the coordinator plan rounds with a higher weight_cap",
            )
        for name, value in update.metrics.items():
            if abs(value) > plain.METRIC_LIMIT:
                raise ConfigError(f"metric {name!r} is {value}, beyond ±{plain.METRIC_LIMIT}")

    def close(self) -> None:
        """Holds no secret."""


class MaskedContribution:
    """See Contribution. The protocol session decides; this class only translates."""

    def __init__(self, session: secagg.SiteSession, round_id: RoundId, *, threads: int) -> None:
        self._session = session
        self._round = round_id
        self._threads = threads
        self.ready = False
        self.over = False
        self.result: secagg.ResultReady | None = None

    def open(self, opened: RoundOpened) -> list[SiteEffect]:
        """Takes the signed plan, and checks that what came around it is what it says.

        Raises:
            ConfigError: the invitation is not the one that was signed.
        """
        effects = self._carry_out(self._session.handle(opened.open_message))
        if not self.over:
            _check_signed(opened, self._opened_plan())
        return effects

    @property
    def plan(self) -> secagg.Plan | None:
        """The signed plan; None before it was checked."""
        return self._session.plan

    def _opened_plan(self) -> secagg.Plan:
        plan = self._session.plan
        if plan is None:
            raise ConfigError("the round was not opened")
        return plan

    @property
    def terms(self) -> ModelTerms:
        """Of the signed plan."""
        plan = self._opened_plan()
        layout = plan.layout.to_bytes()
        return ModelTerms(layout, plan.model_hash, plan.metrics, plan.state_hash)

    def message(self, payload: bytes) -> list[SiteEffect]:
        """Takes a protocol message of the coordinator."""
        return self._carry_out(self._session.handle(payload))

    def contribute(self, update: LocalUpdate) -> list[SiteEffect]:
        """Encodes and masks."""
        effects = self._session.contribute(
            update.arrays,
            weight=update.weight,
            metrics=update.metrics,
            rounding=update.rounding,
            threads=self._threads,
        )
        self.ready = False
        return self._carry_out(effects)

    def acknowledge(self, level: int) -> list[SiteEffect]:
        """Signs it."""
        self.result = None
        return self._carry_out(self._session.checked_result(level))

    def reject(self, reason: str) -> list[SiteEffect]:
        """Signs a refusal, and is out of the round."""
        self.result = None
        return self._carry_out(self._session.reject_result(reason))

    def undo(self) -> None:
        """There is nothing to take back."""

    def close(self) -> None:
        """Wipes the session."""
        self._session.close()

    def _carry_out(self, effects: list[secagg.SiteEffect]) -> list[SiteEffect]:
        done = [out for effect in effects for out in self._translated(effect)]
        # Before the unsigned reason, after which the coordinator hears nothing more of this site.
        refusal = self._session.refusal if self.over and effects else None
        return done if refusal is None else [self._sent(refusal), *done]

    def _sent(self, message: bytes) -> SiteEffect:
        return SendToCoordinator(ProtocolMessage(self._round, message))

    def _translated(self, effect: secagg.SiteEffect) -> list[SiteEffect]:
        match effect:
            case secagg.Send(message):
                return [self._sent(message)]
            case secagg.NeedUpdate():
                self.ready = True
                return []
            case secagg.UploadInput():
                return self._upload(effect)
            case secagg.Withdraw(code, reason, local_reason):
                self.over = True
                decline = Decline(self._round, code, reason)
                note = f"left the round ({code}): {reason} {local_reason}".rstrip()
                return [SendToCoordinator(decline), Note(note)]
            case secagg.Warn(text):
                return [Note(f"warning: {text}")]
            case secagg.Blamed(accused, fault, evidence):
                who = f"site {accused!r}" if accused else "the coordinator"
                return [KeepEvidence(evidence), Note(f"warning: {who} {secagg.FAULT_TEXTS[fault]}")]
            case secagg.Done():
                return [Note("sent the unmask shares")]
            case secagg.ResultReady():
                self.result = effect
                return []
            case _:
                assert_never(effect)

    def _upload(self, made: secagg.UploadInput) -> list[SiteEffect]:
        count = len(made.chunks)
        header = UpdateHeader(self._round, made.update_id, count, 0, {}, made.header)
        upload = Upload(header, made.chunks)
        if made.clipped:
            return [Note(f"{made.clipped} values were clipped to the round's range"), upload]
        return [upload]


def _check_signed(opened: RoundOpened, plan: secagg.Plan) -> None:
    """The envelope around a signed plan is not signed, so it must say the same."""
    signed = (
        ("run", opened.round.run_id, plan.run_id),
        ("round", opened.round.number, plan.round_number),
        ("attempt", opened.round.attempt, plan.attempt),
        ("task id", opened.task_id, plan.task_id),
    )
    for what, told, planned in signed:
        if told != planned:
            raise ConfigError(f"the invitation names {what} {told!r}, the signed plan {planned!r}")
    if task_hash(opened.task) != plan.task_hash:
        raise ConfigError("the task settings are not those of the signed plan")
