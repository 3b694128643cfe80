"""A streaming mean on a device has the bits of the one on the CPU, keeps no updates, and ends with
its device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import veilsum
from support.devices import every_device, on_device, small_windows
from test_device_mean import LAYOUT, WIDE, encoded, values_of
from test_finish_step import gained_mean
from veilsum import Aggregator, ModelLayout, Streaming, _native
from veilsum.errors import ConfigError, DeviceError, PeerError
from veilsum.optimizers import FedAdam

LAYOUTS = pytest.mark.parametrize("layout", [LAYOUT, WIDE], ids=["f32", "f64"])
BOUNDS = Streaming(max_abs=10_000.0, max_total_weight=10**6)


def filled(
    updates: Sequence[Any], backend: str, layout: ModelLayout = LAYOUT, **options: Any
) -> Aggregator:
    mean = Aggregator(layout, backend=backend, streaming=BOUNDS, threads=2)
    for number, update in enumerate(updates):
        weight = 1 + 3**number % 1009
        mean.add(update, weight=weight, site=f"s{number}", gain=1 / (1 + number), **options)
    return mean


@every_device
@pytest.mark.parametrize("codec", veilsum.codecs())
def test_every_codec_gives_the_bits_of_the_cpu(codec: str, backend: str) -> None:
    updates = encoded(codec, 2)
    with small_windows(2):
        assert filled(updates, backend).finish().digest == filled(updates, "cpu").finish().digest


@every_device
@LAYOUTS
def test_arrays_here_and_there_give_the_bits_of_the_cpu(layout: ModelLayout, backend: str) -> None:
    updates = [values_of(number, layout) for number in range(3)]
    expected = filled(updates, "cpu", layout).finish().digest
    resident = [on_device(update, backend, layout) for update in updates]
    for tiles in (1, 3, 256):
        with small_windows(tiles):
            assert filled(updates, backend, layout).finish().digest == expected
            assert filled(resident, backend, layout).finish().digest == expected
            assert filled(resident, backend, layout, copy=False).finish().digest == expected


@every_device
def test_the_order_of_arrival_does_not_show_and_more_may_come_after_a_result(backend: str) -> None:
    updates = [values_of(0), *encoded("int8", 2), *encoded("eden2", 1)]
    digests = set()
    for order in ((0, 1, 2, 3), (3, 1, 0, 2)):
        mean = Aggregator(LAYOUT, backend=backend, streaming=BOUNDS)
        for number in order:
            mean.add(updates[number], weight=number + 1, site=f"s{number}")
            mean.finish()
        digests.add(mean.finish().digest)
    assert len(digests) == 1


@every_device
def test_sums_on_a_device_are_those_of_integers(backend: str) -> None:
    layout = ModelLayout(_native.Layout([("w", "f32", (4200,)), ("n", "i32", (3,))]))
    mean = Aggregator(layout, backend=backend, streaming=Streaming(8.0, 1000))
    updates = []
    for number, gain in enumerate((1.0, 1 / 3, 2.0**-32)):
        values = np.random.default_rng(number).normal(size=4200).astype(np.float32)
        counters = np.full(3, 10 * number, np.int32)
        mean.add({"w": values, "n": counters}, weight=number + 1, site=str(number), gain=gain)
        updates.append((number + 1, gain, values.tolist()))

    result = mean.finish().arrays

    # |value| below 2**4 and a total below 2**10: 62 - 4 - 10 bits behind the point.
    assert result["w"].tolist() == gained_mean(updates, 48)
    assert result["n"].tolist() == [13, 13, 13]  # (0 + 2 * 10 + 3 * 20) / 6


@every_device
@LAYOUTS
def test_a_step_by_a_streaming_mean_has_the_bits_of_the_cpu(
    layout: ModelLayout, backend: str
) -> None:
    updates = [values_of(number, layout) for number in range(2)]
    model = values_of(9, layout)
    expected = filled(updates, "cpu", layout).finish_step(model, FedAdam().start(layout))
    with small_windows(2):
        for device in (None, backend):
            optimizer = FedAdam().start(layout, device=device)
            found = filled(updates, backend, layout).finish_step(model, optimizer)
            assert found.digest == expected.digest
            assert found.sites == ("s0", "s1")


@every_device
def test_what_is_refused_changes_nothing(backend: str) -> None:
    updates = [values_of(number) for number in range(2)]
    expected = filled(updates, "cpu").finish().digest
    mean = filled(updates, backend)
    beyond, bad = values_of(3), values_of(3)
    beyond["d"][0], bad["d"][0] = 10_001.0, np.nan
    for copy in (True, False):
        for update, site, reason in (
            (beyond, "lyon", "beyond the declared max_abs"),
            (bad, "lyon", "not finite"),
            (updates[0], "s0", "already added"),
        ):
            for given in (update, on_device(update, backend, LAYOUT)):
                with pytest.raises(PeerError, match=reason):
                    mean.add(given, weight=1, site=site, copy=copy)
    with pytest.raises(PeerError, match="passes the declared total weight"):
        mean.add(updates[0], weight=10**6, site="lyon")
    with pytest.raises(ConfigError, match="cannot forget site 's0'"):
        mean.remove("s0")
    assert mean.finish().digest == expected


def test_sums_are_all_that_stays_on_the_device() -> None:
    tiles = 4
    mean = Aggregator(LAYOUT, backend="emu", streaming=BOUNDS)
    held = _native.emulator_bytes()
    assert held == 8 * 4096 * tiles
    for number in range(3):
        mean.add(values_of(number), weight=1, site=str(number))
        assert _native.emulator_bytes() == held
    mean.finish()
    assert _native.emulator_bytes() == held
    del mean
    assert _native.emulator_bytes() == 0


def test_sums_that_do_not_fit_a_device_say_what_they_need() -> None:
    _native.use_emulator(memory_bytes=100_000)
    with pytest.raises(DeviceError, match=r"allocating memory on emu:0 \(131072 bytes\) failed"):
        Aggregator(LAYOUT, backend="emu", streaming=BOUNDS)
    assert _native.emulator_bytes() == 0


@pytest.mark.parametrize("resident", [False, True])
def test_a_device_that_is_lost_while_an_update_arrives_ends_the_aggregate(resident: bool) -> None:
    first, second = values_of(0), values_of(1)
    expected = [filled(some, "cpu").finish().digest for some in ([first], [first, second])]
    found = []
    with small_windows():
        for call in range(1, 200):
            mean = filled([first], "emu")
            update = on_device(second, "emu", LAYOUT) if resident else second
            _native.use_emulator(lost_at_call=call)
            done = is_added(mean, update)
            _native.use_emulator()
            found.append(outcome(mean))
            assert found[-1] == expected[1] or not done
            if done:
                break

    # Before it is begun nothing has changed; then nothing is to be had; then it is in the sum.
    before = found.index("") if "" in found else len(found)
    assert found == [expected[0]] * before + [""] * (len(found) - before - 1) + [expected[1]]
    assert len(found) > before + 10


def is_added(mean: Aggregator, update: Any) -> bool:
    """Whether it is; or else the device was lost."""
    try:
        mean.add(update, weight=4, site="s1", gain=0.5, copy=False)
    except DeviceError as error:
        if "lost" not in str(error):
            raise
        return False
    return True


def outcome(mean: Aggregator) -> str:
    """The digest; or "" if every use is refused."""
    try:
        return mean.finish().digest
    except DeviceError as error:
        if "part old and part new" not in str(error):
            raise
    with pytest.raises(DeviceError, match="part old and part new"):
        mean.add(values_of(7), weight=1, site="osaka")
    with pytest.raises(DeviceError, match="part old and part new"):
        mean.finish_step(values_of(9), FedAdam().start(LAYOUT))
    return ""
