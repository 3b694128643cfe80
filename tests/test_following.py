"""The server's step made again at a site: the coordinator's bits, or a refusal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from support.secagg import make_contributions, make_plan
from veilsum import secagg
from veilsum.aggregate.secure_sum import SecureSum
from veilsum.errors import DecodeError
from veilsum.model import ModelLayout, result_digest
from veilsum.optimizers import (
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedYogi,
    OptimizerSettings,
    step_rule_bytes,
)
from veilsum.optimizers.applying import FRESH, apply_mean, saved_state, state_hash
from veilsum.secagg import merkle
from veilsum.secagg.masks import MaskKeys
from veilsum.secagg.result_messages import RoundResult
from veilsum.secagg.sum_tree import SumTree
from veilsum.secagg.upload import encode_upload
from veilsum.site import following
from veilsum.site.following import HeldModel, SumReceiver, WrongResult, next_model

Arrays = dict[str, NDArray[Any]]
EVERY = [
    FedAvg(0.7),
    FedAvgM(0.7, 0.9),
    FedAdagrad(0.05, 1e-3),
    FedAdam(0.05, 0.9, 0.99, 1e-3),
    FedYogi(0.05, 0.9, 0.99, 1e-3),
]
CHUNK = 4096


def _model(seed: int) -> Arrays:
    """Two chunks of one group, and every kind of tensor that a step treats in its own way."""
    rng = np.random.default_rng(seed)
    return {
        "wide": rng.normal(size=CHUNK + 77).astype(np.float32),
        "half": rng.normal(size=(3, 5)).astype(np.float16),
        "double": rng.normal(size=4),
        "seen": rng.integers(0, 99, 3),
    }


def _updates(seed: int) -> Arrays:
    return {
        name: (array if array.dtype.kind == "i" else array * 0.1).astype(array.dtype)
        for name, array in _model(seed).items()
    }


LAYOUT = ModelLayout.from_arrays(_model(0))


def _plan(settings: OptimizerSettings, **changes: Any) -> secagg.Plan:
    return make_plan(
        3,
        layout=LAYOUT,
        colluders=0,
        chunk_coordinates=CHUNK,
        step_rule=step_rule_bytes(settings),
        **changes,
    )


def _summed(plan: secagg.Plan, seed: int) -> SecureSum:
    """What the coordinator has once the masks are off: the sum of the encoded updates."""
    total = SecureSum(plan.ring)
    for given in make_contributions(plan, lambda number: _updates(seed + number)).values():
        total.fold(encode_upload(plan, given, MaskKeys(), update_id=1, threads=1).chunks)
    return total


class Server:
    """The coordinator's own way from sum to model."""

    def __init__(self, settings: OptimizerSettings) -> None:
        self.optimizer = settings.start(LAYOUT)
        self.model = _model(0)

    @property
    def start(self) -> tuple[bytes, bytes]:
        digest = bytes.fromhex(result_digest(LAYOUT, self.model))
        return digest, state_hash(self.optimizer)

    def finish(self, plan: secagg.Plan, total: SecureSum) -> RoundResult:
        roots = SumTree.over(plan.ring, total.chunks()).roots
        mean = total.finish(len(plan.cohort))
        named = dict(zip(LAYOUT.names, mean.arrays, strict=True))
        self.model = apply_mean(self.optimizer, self.model, named)
        digest = bytes.fromhex(result_digest(LAYOUT, mean.arrays))
        zeros = bytes(32)
        return RoundResult(
            plan.context, "", zeros, zeros, roots, mean.total_weight, (), digest, *self.start
        )


def _held(server: Server) -> HeldModel:
    model_hash, hashed = server.start
    state = saved_state(server.optimizer) if hashed != FRESH else None
    copied = {name: array.copy() for name, array in server.model.items()}
    data = state.to_bytes() if state else None
    held = HeldModel(LAYOUT, copied, model_hash, None, hashed)
    return held if data is None else held.with_state(data)


def _pieces(total: SecureSum, size: int) -> Iterator[bytes]:
    data = b"".join(chunk.words for chunk in total.chunks())
    return (data[begin : begin + size] for begin in range(0, len(data), size))


def _received(plan: secagg.Plan, total: SecureSum, result: RoundResult, size: int) -> SecureSum:
    receiver = SumReceiver(plan.ring, result.roots, threads=2)
    for piece in _pieces(total, size):
        receiver.add(piece)
    return receiver.finish()


@pytest.mark.parametrize("hadamard", [0, 1024])
@pytest.mark.parametrize("settings", EVERY, ids=lambda settings: settings.name)
def test_a_site_comes_to_the_servers_bits_round_after_round(
    settings: OptimizerSettings, hadamard: int
) -> None:
    server, held = Server(settings), None
    for number in (1, 2, 3):
        held = held or _held(server)
        assert (held.model_hash, held.state_hash) == server.start
        model_hash, hashed = server.start
        plan = _plan(
            settings,
            hadamard=hadamard,
            round_number=number,
            model_hash=model_hash,
            state_hash=hashed,
        )
        total = _summed(plan, 10 * number)
        result = server.finish(plan, total)

        summed = _received(plan, total, result, 1000 * number)
        held = next_model(plan, held, summed, result, plan.cohort, threads=2)

        assert (held.model_hash, held.state_hash) == server.start
        for name, array in server.model.items():
            np.testing.assert_array_equal(held.arrays[name], array)
            assert not held.arrays[name].flags.writeable


@pytest.mark.parametrize("settings", EVERY[1:], ids=lambda settings: settings.name)
def test_a_site_goes_on_from_a_state_that_was_handed_out(settings: OptimizerSettings) -> None:
    server = Server(settings)
    first = _plan(settings)
    server.finish(first, _summed(first, 1))
    held = _held(server)
    plan = _plan(settings, round_number=2)
    total = _summed(plan, 2)
    result = server.finish(plan, total)

    following = next_model(
        plan, held, _received(plan, total, result, 999), result, plan.cohort, threads=1
    )

    assert (following.model_hash, following.state_hash) == server.start


def test_another_state_than_the_plans_is_refused() -> None:
    server = Server(FedAvgM())
    plan = _plan(FedAvgM())
    server.finish(plan, _summed(plan, 1))
    state = saved_state(server.optimizer)
    assert state is not None
    held = replace(_held(server), state=None)
    assert not held.complete

    data = bytearray(state.to_bytes())
    data[-1] ^= 1

    with pytest.raises(DecodeError, match="hash differs"):
        held.with_state(bytes(data))
    assert held.with_state(state.to_bytes()).complete


# What the coordinator may sign instead of the truth: a change of the result, and what is said.
LIES: list[tuple[dict[str, Any], str]] = [
    ({"model_hash": b"\1" * 32}, "leads to another model"),
    ({"state_hash": b"\1" * 32}, "leads to another model"),
    ({"mean_digest": b"\1" * 32}, "mean of the result is not the one of its sum"),
    ({"total_weight": 1}, "mean of the result is not the one of its sum"),
]


@pytest.mark.parametrize(("lie", "reason"), LIES)
def test_a_result_that_does_not_follow_from_its_sum_is_found_out(
    lie: dict[str, Any], reason: str
) -> None:
    server = Server(FedAvg())
    held, plan = _held(server), _plan(FedAvg())
    total = _summed(plan, 1)
    result = server.finish(plan, total)
    summed = _received(plan, total, result, 5000)
    next_model(plan, held, summed, result, plan.cohort, threads=1)

    with pytest.raises(WrongResult, match=reason):
        next_model(plan, held, summed, replace(result, **lie), plan.cohort, threads=1)


@pytest.mark.parametrize("other", [FedAvg(0.71), FedAvgM(0.7)])
def test_a_server_that_makes_another_step_than_it_stated_is_found_out(
    other: OptimizerSettings,
) -> None:
    server = Server(other)
    held, plan = _held(server), _plan(FedAvg(0.7))
    total = _summed(plan, 1)
    result = server.finish(plan, total)

    summed = _received(plan, total, result, 5000)
    with pytest.raises(WrongResult, match="leads to another model"):
        next_model(plan, held, summed, result, plan.cohort, threads=1)


def test_a_sum_that_cannot_be_the_survivors_is_found_out() -> None:
    server = Server(FedAvg())
    held, plan = _held(server), _plan(FedAvg())
    total = _summed(plan, 1)
    result = server.finish(plan, total)

    summed = _received(plan, total, result, 5000)
    with pytest.raises(WrongResult, match="counts 3 updates instead of 2"):
        next_model(plan, held, summed, result, plan.cohort[:2], threads=1)


def test_a_sum_with_one_other_bit_is_not_under_the_roots() -> None:
    plan = _plan(FedAvg())
    total = _summed(plan, 1)
    result = Server(FedAvg()).finish(plan, total)
    for place in (0, 40, CHUNK, -1):
        data = bytearray(b"".join(chunk.words for chunk in total.chunks()))
        data[place] ^= 1
        receiver = SumReceiver(plan.ring, result.roots, threads=1)
        receiver.add(data)

        with pytest.raises(DecodeError, match="not under its signed root"):
            receiver.finish()


def test_a_sum_that_is_cut_or_too_long_is_refused() -> None:
    plan = _plan(FedAvg())
    total = _summed(plan, 1)
    result = Server(FedAvg()).finish(plan, total)
    data = b"".join(chunk.words for chunk in total.chunks())
    receiver = SumReceiver(plan.ring, result.roots, threads=1)

    receiver.add(data[:-1])
    with pytest.raises(DecodeError, match="ends within chunk 0 of stream 2"):
        receiver.finish()
    receiver.add(data[-1:])
    assert receiver.finish().finish(3).total_weight == result.total_weight
    with pytest.raises(DecodeError, match="more bytes"):
        receiver.add(b"\0")
    receiver = SumReceiver(plan.ring, result.roots, threads=1)
    with pytest.raises(DecodeError, match="more bytes"):
        receiver.add(data + b"\0")


def test_a_sum_that_comes_again_while_it_is_checked_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The coordinator signs the roots of the sum and the step of another, has the site ask for the
    sum a second time, and sends that other one while the site looks at the first."""
    plan = _plan(FedAvg())
    total, other = _summed(plan, 1), _summed(plan, 2)
    held = _held(Server(FedAvg()))
    forged = replace(
        Server(FedAvg()).finish(plan, other), roots=SumTree.over(plan.ring, total.chunks()).roots
    )
    receiver = SumReceiver(plan.ring, forged.roots, threads=1)
    for piece in _pieces(total, 5000):
        receiver.add(piece)
    left = list(forged.roots)

    def meanwhile(leaves: Sequence[bytes]) -> bytes:
        root = merkle.root_hash(leaves)
        left.pop()
        if not left:
            receiver.restart()
            with suppress(DecodeError):
                for piece in _pieces(other, 5000):
                    receiver.add(piece)
        return root

    monkeypatch.setattr(following, "merkle", SimpleNamespace(root_hash=meanwhile))
    summed = receiver.finish()
    with pytest.raises(WrongResult, match="mean of the result is not the one of its sum"):
        next_model(plan, held, summed, forged, plan.cohort, threads=1)
