"""Sites without a trainer, many in one process, and updates whose exact mean is known.

Values are whole numbers of units, in blocks whose largest is 127: int8 and the ring of a masked
round hold them without a rounding, so means follow from integers.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veilsum import _native, secagg
from veilsum._native import Secret
from veilsum.control import ProtocolMessage, RoundClosed, RoundOpened, RunStatus
from veilsum.model import ModelLayout
from veilsum.secagg.result_messages import SIGNATURE_ONLY
from veilsum.site.contribution import (
    Contribution,
    LocalUpdate,
    MaskedContribution,
    PlainContribution,
)
from veilsum.site.effects import SendToCoordinator, SiteEffect, Upload
from veilsum.transport.checkpoints import load_model
from veilsum.transport.client import Connection

BLOCK = 64  # coordinates that share a scale of int8
UNIT = 2.0**-12
MODEL_UNIT = 2.0**-6
STEP_LIMIT = 2**15 - 1  # of 16 bits
CLIP = STEP_LIMIT * 2.0**-15  # so that a step at full weight is 2^-15
MASKED_WEIGHT, WEIGHT_CAP = 100, 200  # at half of it a step is 2^-14, of which a unit is 4
RATE = 0.5


@dataclass(frozen=True)
class Updates:
    """Site number -> update: the same codes, moved on by a block from site to site.

    Attributes:
        tensors: how many there are, all of one size, a multiple of BLOCK.
    """

    parameters: int
    tensors: int = 1
    codes: NDArray[np.int8] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.parameters % (self.tensors * BLOCK):
            raise SystemExit(f"parameters must be a multiple of {self.tensors * BLOCK}")
        codes = np.random.default_rng(1).integers(-127, 128, self.parameters, dtype=np.int8)
        codes[::BLOCK] = np.where(codes[::BLOCK] < 0, np.int8(-127), np.int8(127))
        object.__setattr__(self, "codes", codes)

    @property
    def layout(self) -> ModelLayout:
        """Of model and updates."""
        shape = (self.parameters // self.tensors,)
        return ModelLayout(
            _native.Layout([(f"layer-{n:03}", "f32", shape) for n in range(self.tensors)])
        )

    def of(self, number: int) -> dict[str, NDArray[np.float32]]:
        """The update of one site."""
        return {
            name: self._moved(number, tensor) * np.float32(UNIT)
            for tensor, name in enumerate(self.layout.names)
        }

    def model(self) -> dict[str, NDArray[np.float32]]:
        """What the round begins with."""
        return {name: self._model(tensor) for tensor, name in enumerate(self.layout.names)}

    def _model(self, tensor: int) -> NDArray[np.float32]:
        return self._moved(-7, tensor) * np.float32(MODEL_UNIT)

    def _moved(self, number: int, tensor: int) -> NDArray[np.int8]:
        size = self.parameters // self.tensors
        first = (tensor * size - number * BLOCK) % self.parameters
        left = self.codes[first : first + size]
        return np.concatenate((left, self.codes[: size - left.size])) if left.size < size else left

    def means(self, weights: Sequence[int], *, masked: bool) -> Iterator[NDArray[np.float32]]:
        """The weighted mean over all sites, tensor by tensor; masked: all of MASKED_WEIGHT."""
        for tensor in range(self.tensors):
            sums = np.zeros(self.parameters // self.tensors, np.int64)
            for number, weight in enumerate(weights):
                sums += self._moved(number, tensor) * np.int64(1 if masked else weight)
            if masked:  # docs/numerics.md: steps times a factor, in double, rounded once
                factor = WEIGHT_CAP / (2.0**15 * sum(weights))
                yield (4 * sums * factor).astype(np.float32)
            else:
                yield exact_means(sums, sum(weights), UNIT)

    def check(
        self, status: RunStatus, state: Path, weights: Sequence[int], *, masked: bool
    ) -> None:
        """Holds digests and the new model's file against what integers and hashlib say.

        Raises:
            SystemExit: they differ.
        """
        [record] = status.rounds
        mean, new = (hashlib.sha256(self.layout.digest) for _ in range(2))
        _, kept = load_model(state / "models" / status.run_id / "round-1.safetensors")
        same = status.state == "completed"
        for tensor, values in enumerate(self.means(weights, masked=masked)):
            stepped = self._model(tensor).astype(np.float64) + RATE * values.astype(np.float64)
            mean.update(values.tobytes())
            new.update(stepped.astype(np.float32).tobytes())
            found = kept[self.layout.names[tensor]]
            same = same and found.tobytes() == stepped.astype(np.float32).tobytes()
        expected = (mean.hexdigest(), new.hexdigest())
        if not same or (record.digest, record.model_hash) != expected:
            found = (same, record.digest == expected[0], record.model_hash == expected[1])
            raise SystemExit(
                f"wrong result of a run that is {status.state}: {status.reason} "
                f"(file, digest, model hash: {found})"
            )


def exact_means(sums: NDArray[np.int64], divisor: int, unit: float) -> NDArray[np.float32]:
    """sums * unit / divisor, rounded once to float32, by rational arithmetic where double cannot
    decide.

    Args:
        unit: a power of two.
    """
    assert int(np.abs(sums).max()) < 2**53
    quotients = sums / np.float64(divisor) * unit
    means = quotients.astype(np.float32)
    tie = (quotients.view(np.uint64) & np.uint64(0x1FFFFFFF)) == np.uint64(0x10000000)
    for place in np.flatnonzero(tie):
        means[place] = _nearest(Fraction(int(sums[place]), divisor) * Fraction(unit))
    return means


def _nearest(value: Fraction) -> np.float32:
    near = np.float32(float(value))
    around = (np.nextafter(near, np.float32(-np.inf)), near, np.nextafter(near, np.float32(np.inf)))
    return min(
        around, key=lambda one: (abs(Fraction(float(one)) - value), int(one.view(np.uint32)) & 1)
    )


@dataclass
class LightSite:
    """Joins, fetches the model, encodes, uploads, and acknowledges the result unseen.

    Attributes:
        fetching: held while it receives the model, which it does not keep.
        turn: held while its update is in memory.
        masked: makes the session of a masked round; None in a plain one.
        upload_s: seconds of its upload, once it is over.
    """

    name: str
    number: int
    weight: int
    updates: Updates
    fetching: asyncio.Semaphore
    turn: asyncio.Semaphore
    masked: Any = None
    upload_s: float = 0.0

    async def take_part(self, connection: Connection) -> None:
        """Until the end of the round.

        Raises:
            RuntimeError: the round failed, or this site's part in it.
        """
        part: Contribution | None = None
        async for message in connection.messages():
            match message:
                case RoundOpened():
                    part, effects = await asyncio.to_thread(self._open, message)
                case ProtocolMessage() if part is not None:
                    effects = await asyncio.to_thread(part.message, message.payload)
                case RoundClosed(_, completed, reason):
                    if not completed:
                        raise RuntimeError(f"the round failed: {reason}")
                    return
                case _:
                    continue
            if part.result is not None:
                effects = [*effects, *part.acknowledge(SIGNATURE_ONLY)]
            await self._send(connection, effects)
            if part.ready:
                part.ready = False
                await self._contribute(part, connection, message.round)
        raise RuntimeError("the coordinator hung up")

    def _open(self, opened: RoundOpened) -> tuple[Contribution, list[SiteEffect]]:
        if opened.plain is not None:
            return PlainContribution(opened.plain, opened.round, self.name, threads=1), []
        part = MaskedContribution(self.masked(), opened.round, threads=2)
        return part, part.open(opened)

    async def _send(self, connection: Connection, effects: Sequence[SiteEffect]) -> None:
        for effect in effects:
            if isinstance(effect, SendToCoordinator):
                await connection.send(effect.message)

    async def _contribute(self, part: Contribution, connection: Connection, round_id: Any) -> None:
        async with self.fetching:
            await connection.fetch_model(round_id, max_bytes=1 << 40)
        async with self.turn:
            upload = await asyncio.to_thread(self._encoded, part)
            began = time.perf_counter()
            if not await connection.push_update(upload.header, upload.chunks):
                raise RuntimeError(f"the update of {self.name} does not count")
            self.upload_s = time.perf_counter() - began
            if isinstance(part, MaskedContribution):
                _let_go(part)

    def _encoded(self, part: Contribution) -> Upload:
        rounding = Secret.from_os(32)  # of no effect on whole codes
        effects = part.contribute(
            LocalUpdate(self.updates.of(self.number), self.weight, {}, rounding)
        )
        part.ready = False
        [upload] = [effect for effect in effects if isinstance(effect, Upload)]
        return upload


def _let_go(part: MaskedContribution) -> None:
    """A site keeps what it may have to send again; those of all sites of this process would not
    fit into memory, and no connection breaks here."""
    session = part._session
    phase: Any = session._phase
    session._phase = replace(phase, upload=replace(phase.upload, chunks=()))


def session_of(name: str, key: Any, roster: Any, ledger: secagg.Ledger) -> secagg.SiteSession:
    """A site's side of a masked round, which trusts the first model it sees."""
    return secagg.SiteSession(
        site=name,
        signing_key=key,
        roster=roster,
        policy=secagg.LocalPolicy(provenance="off", min_colluders=0),
        entropy=Secret.from_os,
        ledger=ledger,
    )
