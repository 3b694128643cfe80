"""A member that sends what is almost right, thousands of times, while the others hold rounds.

It is a site of the roster with a good certificate, it is in the rounds that it attacks, and it
starts from messages that are valid in just those rounds; an operator's certificate is turned
against the coordinator as well. What must hold: the rounds end with the digests of undisturbed
ones; the coordinator never fails inside; its memory stays within MOST_MEMORY of what undisturbed
rounds took; and honest calls meanwhile cost the coordinator no more than MOST_CPU_SECONDS each, all
that it did for the attacker in between included. Processor time, not time: it does not depend on
what else the machine does.
"""

from __future__ import annotations

import asyncio
import random
import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from support.attacked import HONEST, HOSTILE, Attacked, attacked, honest_sites
from support.frames import mutated, recorded
from support.raw import METHODS, call, credentials_of, dialled
from support.serving import hello
from veilsum.control import Deadlines, RunSpec, RunStatus
from veilsum.errors import ConfigError
from veilsum.proto.v1 import federation_pb2 as pb

JOIN = "/veilsum.v1.Federation/Join"
PUSH = "/veilsum.v1.Federation/PushUpdate"
STATUS = "/veilsum.v1.Federation/PushStatus"
WATCH = "/veilsum.v1.Operator/WatchRun"
# Its one call that ends a run does so by right, and so does the one that ends old ones.
SPARED = {"/veilsum.v1.Operator/AbortRun", "/veilsum.v1.Operator/PruneRuns"}

MOST_MEMORY = 64 << 20
MOST_CPU_SECONDS = 1.0

# Updates are multiples of 1/256, and with a weight of 10 the scale is 2**14: nothing is left for
# stochastic rounding, so masked rounds of the same sites have the same digest as well.
MASKED = RunSpec(
    task_id="undisturbed",
    min_sites=3,
    colluders=1,
    weight_cap=20,
    clip=(2**15 - 1) / 2**15,
    max_attempts=1,
    cohort=HONEST,
    deadlines=Deadlines(*[300.0] * 7, cooldown_s=0.1),
)
PLAIN = replace(MASKED, masked=False, codec="f32", colluders=None)
# --- the attacker -------------------------------------------------------------------


class Attacker:
    """The hostile site: one process as long as it can be, so that it stays in its round."""

    def __init__(self, target: Attacked, channel: grpc.aio.Channel, seed: int) -> None:
        self._target = target
        self._channel = channel
        self._dice = random.Random(seed)
        self._instance = self._dice.randbytes(16)

    async def join(self, instance: bytes | None = None) -> Any:
        """A stream that does as it should."""
        stream = call(self._channel, JOIN, None)
        await stream.write(self._hello(instance or self._instance))
        await stream.read()
        return stream

    def _hello(self, instance: bytes) -> bytes:
        greeting = hello(self._target.consortium.roster.hash)
        greeting.hello.instance = instance
        return greeting.SerializeToString()

    async def leave(self) -> None:
        """Now the round need not wait for it any more."""
        goodbye = pb.SiteMessage(goodbye=pb.Goodbye()).SerializeToString()
        status = None
        while status is not grpc.StatusCode.OK:
            # One of its own streams may arrive behind this one and take over; and a hello with a
            # changed instance was a process that took the first one's place for good.
            with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                stream = await self.join(self._dice.randbytes(16))
                await stream.write(goodbye)
                await _ended(stream)
                status = await stream.code()

    async def attack(self, paths: tuple[str, ...], times: int, honest: grpc.aio.Channel) -> None:
        """So many mutations of valid messages of these calls, and honest calls between them."""
        for number in range(times):
            path = self._dice.choice(paths)
            valid = self._dice.choice(self._target.frames[path])
            await self._one(path, mutated(valid, self._dice))
            self._target.sent += 1
            if number % 5 == 0:
                await _honest_call(self._target, honest)

    async def _one(self, path: str, message: bytes) -> None:
        # Some are valid still, and a run that goes on can be watched for long.
        options = {"timeout": 0.2} if path == WATCH else {}
        if not METHODS[path].client_streaming:
            started = call(self._channel, path, message, **options)
        else:
            started = call(self._channel, path, None)
            for part in (*self._before(path), message):
                with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    await started.write(part)
            with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await started.done_writing()
        await _ended(started)

    def _before(self, path: str) -> list[bytes]:
        """What makes the coordinator look at a message that is not the first."""
        if path == JOIN and self._dice.random() < 0.8:
            return [self._hello(self._instance)]
        if path == PUSH and self._dice.random() < 0.8:
            headers = [one for one in self._target.frames[PUSH] if one[0] == 0x0A]
            return [self._dice.choice(headers)]
        return []


async def _ended(started: Any) -> None:
    """Reads all that comes."""
    with suppress(grpc.aio.AioRpcError):
        if not hasattr(started, "read"):
            await started
            return
        while await started.read() is not grpc.aio.EOF:
            pass


# --- the attack ---------------------------------------------------------------------


async def undisturbed(target: Attacked) -> tuple[str, str]:
    """Digests of a masked and of a plain round; what all sites said in them is recorded."""
    with recorded() as frames:
        async with honest_sites(target):
            masked = await target.ended(await target.run(MASKED))
            plain = await target.ended(await target.run(PLAIN))
    assert (masked.state, plain.state) == ("completed", "completed"), (masked, plain)
    # Nothing of the last part of an upload: a whole one counts, changed weight and all.
    frames[PUSH] = [one for one in frames[PUSH] if len(one) < 1 << 16]
    target.frames = dict(frames)
    return masked.rounds[0].digest, plain.rounds[0].digest


async def under_attack(target: Attacked, spec: RunSpec, times: int) -> RunStatus:
    """A round in which the attacker is, and is waited for, until it has done its worst."""
    credentials = credentials_of(target.consortium.sites[HOSTILE])
    operators = credentials_of(target.consortium.operator)
    async with (
        honest_sites(target),
        dialled(target.port, credentials) as channel,
        dialled(target.port, operators) as operators_channel,
        dialled(target.port, credentials_of(target.consortium.sites["a"])) as honest,
    ):
        attacker = Attacker(target, channel, seed=times + spec.masked)
        joined = await attacker.join()
        run_id = await target.run(spec)
        opened = pb.CoordinatorMessage.FromString(await joined.read()).round_opened
        target.frames = {
            path: [_of_this_round(frame, opened.round) for frame in frames]
            for path, frames in target.frames.items()
        }
        mine, theirs = _paths("Federation", target), _paths("Operator", target)
        other = Attacker(target, operators_channel, seed=times + 2)
        await asyncio.gather(
            attacker.attack(mine, times - 2 * (times // 5), honest),
            attacker.attack(tuple(sorted(set(mine) - {JOIN})), times // 5, honest),
            other.attack(theirs, times // 5, honest),
        )
        joined.cancel()
        await attacker.leave()
        ended = await target.ended(run_id)
        await _abort_what_was_let_in(target)
        return ended


def _paths(service: str, target: Attacked) -> tuple[str, ...]:
    return tuple(sorted(path for path in target.frames if service in path and path not in SPARED))


def _of_this_round(frame: bytes, now: pb.RoundId) -> bytes:
    """The same message, of the round in progress: run ids are all of one length."""
    return re.sub(rb"\d{8}-\d{6}-[0-9a-f]{6}", now.run_id.encode(), frame)


async def _honest_call(target: Attacked, channel: grpc.aio.Channel) -> None:
    """An honest site asks something, and it costs the coordinator little until it is answered."""
    before = target.cpu_seconds()
    request = pb.PushStatusRequest(round=pb.RoundId(run_id="none", number=1))
    with suppress(grpc.aio.AioRpcError):
        await call(channel, STATUS, request.SerializeToString())
    assert target.cpu_seconds() - before < MOST_CPU_SECONDS


async def _abort_what_was_let_in(target: Attacked) -> None:
    """A submission that is still valid after a change is a run like any other."""
    for run in await asyncio.to_thread(target.operator.runs):
        if run.state in ("waiting", "running"):
            with suppress(ConfigError):  # it has ended meanwhile
                await asyncio.to_thread(target.operator.abort, run.run_id)


async def withstands(target: Attacked, times: int) -> None:
    masked, plain = await undisturbed(target)
    before = target.memory()

    everybody = {"cohort": (), "min_sites": 3}
    one = await under_attack(target, replace(MASKED, task_id="one", **everybody), times // 2)
    other = await under_attack(target, replace(PLAIN, task_id="other", **everybody), times // 2)

    assert target.sent >= times - 10
    for run, digest in ((one, masked), (other, plain)):
        assert run.state == "completed", run.reason
        assert (run.rounds[0].sites, run.rounds[0].digest) == (HONEST, digest)
    assert target.memory() - before < MOST_MEMORY
    assert target.process.poll() is None
    assert target.errors() == ""


@pytest.mark.parametrize("times", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mutations_of_valid_messages_hurt_nobody(times: int, tmp_path: Path) -> None:
    with attacked(tmp_path) as target:
        asyncio.run(asyncio.wait_for(withstands(target, times), 60 + times / 20))
