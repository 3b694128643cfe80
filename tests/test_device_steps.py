"""A step of a server optimizer on a device has the bits of the step on the host, wherever model and
moments lie."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from reference import optimizers as reference
from support.devices import every_device, on_device, results_of_losses, small_windows
from test_device_arrays import Foreign, Lent
from test_finish_step import LAYOUT, SETTINGS, WITH_DOUBLES, filled, values_of
from veilsum import Aggregator, ModelLayout, SteppedModel, _native
from veilsum.arrays import as_native, widen_bfloat16
from veilsum.errors import ConfigError, DeviceError
from veilsum.model import result_digest
from veilsum.optimizers import FedAdam, FedAvg, FedAvgM, FedYogi

every_optimizer = pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: s.name)
LAYOUTS = pytest.mark.parametrize("layout", [LAYOUT, WITH_DOUBLES], ids=["floats", "doubles"])

# Where the old model, the moments and the new model lie.
PLACES = [(True, True, True), (True, False, True), (False, True, False), (False, False, True),
          (True, True, False), (False, True, True), (True, False, False)]  # fmt: skip


def device_of(backend: str) -> str:
    return f"{backend}:0"


def empty_like(layout: ModelLayout, backend: str, there: bool) -> dict[str, Any]:
    return {
        name: _native.DeviceArray.empty(device_of(backend), shape, dtype)
        if there and dtype[0] in "fb"
        else np.zeros(shape, values_dtype(dtype))
        for name, dtype, shape in layout.native.tensors
    }


def values_dtype(dtype: str) -> str:
    return "u2" if dtype == "bf16" else f"{dtype[0]}{int(dtype[1:]) // 8}"


def bits(arrays: Mapping[str, Any], layout: ModelLayout) -> bytes:
    """Of a model in any form, to compare models with each other."""
    return result_digest(layout, {n: as_native(a, n)[0] for n, a in arrays.items()}).encode()


@every_device
@every_optimizer
@LAYOUTS
@pytest.mark.parametrize("places", PLACES, ids=str)
def test_two_steps_have_the_bits_of_the_host(
    places: tuple[bool, bool, bool], layout: ModelLayout, settings: Any, backend: str
) -> None:
    model_there, moments_there, updated_there = places
    there = settings.start(layout, device=backend if moments_there else None)
    here = settings.start(layout)
    with small_windows(2):
        host = device = values_of(99, layout)
        for gain in (1.5, 0.25):
            expected = filled(layout).finish_step(host, here, gain=gain)
            model = on_device(device, backend, layout) if model_there else device
            out = empty_like(layout, backend, updated_there)
            found = filled(layout, backend=backend).finish_step(model, there, gain=gain, out=out)

            assert found.digest == expected.digest
            assert (found.sites, found.total_weight) == (expected.sites, expected.total_weight)
            assert all(found.arrays[name] is out[name] for name in layout.names)
            assert bits(out, layout) == expected.digest.encode()
            host = expected.arrays
            device = {name: as_native(array, name)[0] for name, array in out.items()}
    assert there.to_bytes() == here.to_bytes()


@every_device
@every_optimizer
def test_steps_on_a_device_are_those_of_the_papers(settings: Any, backend: str) -> None:
    layout = ModelLayout(
        _native.Layout([("a", "f32", (70,)), ("h", "f16", (70,)), ("w", "f64", (9,))])
    )
    mean = filled(layout).finish().arrays
    model = values_of(9, layout)
    oracle = reference.Optimizer(
        settings.name,
        settings.learning_rate,
        getattr(settings, "beta1", getattr(settings, "momentum", 0.0)),
        getattr(settings, "beta2", 0.0),
        getattr(settings, "tau", 0.0),
    )
    expected = {
        name: oracle.step(name, dtype, model[name].tolist(), mean[name].tolist(), 1.5)
        for name, dtype, _ in layout.native.tensors
    }

    found = filled(layout, backend=backend).finish_step(
        on_device(model, backend, layout), settings.start(layout, device=backend), gain=1.5
    )

    assert {name: array.to_host().tolist() for name, array in found.arrays.items()} == expected


@every_device
@pytest.mark.parametrize(("dtype", "places"), [("f16", 11), ("bf16", 8)])
def test_a_new_value_of_sixteen_bits_is_rounded_once(dtype: str, places: int, backend: str) -> None:
    """1 + 2**-p is half-way between two values; a little more, lost in a float, is above it."""
    layout = ModelLayout(_native.Layout([("w", dtype, (2,))]))
    mean = Aggregator(layout, backend=backend)
    ones = np.ones(2, np.float16 if dtype == "f16" else np.float32)
    mean.add({"w": ones * 2.0**-places}, weight=1, site="lyon")
    model = on_device({"w": ones}, backend, layout)

    found = mean.finish_step(model, FedAvg().start(layout), gain=1 + 2.0**-29)

    expected = 1 + 2.0 ** (1 - places)
    values, _ = as_native(found.arrays["w"], "w")
    wide = values if dtype == "f16" else widen_bfloat16(values)
    assert wide.tolist() == [expected, expected]


@every_device
def test_a_new_model_lies_where_the_old_one_does_and_needs_no_digest(backend: str) -> None:
    expected = filled(LAYOUT).finish_step(values_of(9, LAYOUT), FedYogi().start(LAYOUT))

    model = on_device(values_of(9, LAYOUT), backend, LAYOUT)
    found = filled(LAYOUT, backend=backend).finish_step(
        model, FedYogi().start(LAYOUT, device=backend), digest=False
    )

    assert found.digest == ""
    assert {
        name: array.dtype
        for name, array in found.arrays.items()
        if isinstance(array, _native.DeviceArray)
    } == {"a": "f32", "h": "f16", "d": "f32", "b": "bf16"}
    assert isinstance(found.arrays["n"], np.ndarray)
    assert bits(found.arrays, LAYOUT) == expected.digest.encode()
    assert bits(model, LAYOUT) == bits(values_of(9, LAYOUT), LAYOUT)


@every_device
@pytest.mark.parametrize(("blocks", "threads"), [(1, 32), (3, 96), (1000, 256)])
def test_the_shape_of_a_launch_does_not_show(blocks: int, threads: int, backend: str) -> None:
    expected = filled(WITH_DOUBLES).finish_step(
        values_of(9, WITH_DOUBLES), FedAdam().start(WITH_DOUBLES)
    )
    _native.use_launch_shape(blocks=blocks, threads=threads)
    optimizer = FedAdam().start(WITH_DOUBLES, device=backend)
    found = filled(WITH_DOUBLES, backend=backend).finish_step(values_of(9, WITH_DOUBLES), optimizer)
    assert found.digest == expected.digest


# --- in place --------------------------------------------------------------------------------


def lent_by(library: type[Any]) -> tuple[ModelLayout, dict[str, Any], _native.DeviceArray]:
    """A model of another library, whose second tensor begins at a multiple of 4 bytes only; and
    the memory that both of its tensors lie in."""
    layout = ModelLayout(_native.Layout([("a", "f32", (4200,)), ("b", "f32", (4111,))]))
    memory = _native.DeviceArray("emu:0", np.linspace(-1, 1, 8400, dtype=np.float32), "f32")
    place = memory.__cuda_array_interface__["data"][0]
    a = Foreign(memory, shape=(4200,))
    b = Foreign(memory, shape=(4111,), data=(place + 4 * 4201, False))
    taken = {name: _native.device_array(x, kind="emu") for name, x in (("a", a), ("b", b))}
    return layout, {name: library(array) for name, array in taken.items()}, memory


@pytest.mark.parametrize("library", [Lent, lambda array: array], ids=["dlpack", "interface"])
def test_arrays_of_another_library_are_stepped_where_they_lie(library: Any) -> None:
    layout, model, memory = lent_by(library)
    old = memory.to_host()
    expected = filled(layout).finish_step(
        {"a": old[:4200], "b": old[4201:8312]}, FedAvgM().start(layout)
    )

    optimizer = FedAvgM().start(layout, device="emu")
    with small_windows():
        found = filled(layout, backend="emu").finish_step(model, optimizer, out=model)

    new = memory.to_host()
    assert found.digest == expected.digest
    assert all(found.arrays[name] is model[name] for name in model)
    assert new[:4200].tobytes() == expected.arrays["a"].tobytes()
    assert new[4201:8312].tobytes() == expected.arrays["b"].tobytes()
    assert new[4200] == old[4200]
    assert (new[8312:] == old[8312:]).all()


def test_what_lies_on_the_device_does_not_cross_the_bus() -> None:
    size = 4096 * 20
    layout = ModelLayout(_native.Layout([("w", "f32", (size,))]))
    update, model = values_of(1, layout), values_of(2, layout)
    moments, there = FedAdam().start(layout, device="emu"), on_device(model, "emu", layout)
    mean = Aggregator(layout, backend="emu")
    mean.add(update, weight=1, site="lyon")

    def copied(model: Any, optimizer: Any, **options: Any) -> float:
        """Bytes to the device per coordinate, beyond those of the mean."""
        _native.use_emulator()
        mean.finish()
        alone = _native.emulator_copied_bytes()
        _native.use_emulator()
        mean.finish_step(model, optimizer, **options)
        return round((_native.emulator_copied_bytes() - alone) / size, 1)

    assert copied(model, FedAdam().start(layout)) == 0  # on the host
    assert copied(there, moments, out=there) == 0.1  # the table of tensors
    assert copied(model, moments) == 4.1
    assert copied(there, FedAdam().start(layout)) == 8.1


def test_the_memory_of_a_step_does_not_grow_with_the_model() -> None:
    size = 1 << 20
    layout = ModelLayout(_native.Layout([("w", "f32", (size,))]))
    mean = Aggregator(layout, backend="emu", threads=2)
    mean.add({"w": np.full(size, 2, np.float32)}, weight=1, site="lyon")
    out = {"w": _native.DeviceArray.empty("emu:0", (size,), "f32")}
    _native.use_pass_memory(window_bytes=1 << 20, window_tiles=4)
    _native.use_emulator(memory_bytes=4 * size + (2 << 20))

    mean.finish_step({"w": np.ones(size, np.float32)}, FedAvg().start(layout), out=out)

    assert (out["w"].to_host() == 3).all()


# --- state ------------------------------------------------------------------------------------


@every_device
def test_a_state_goes_from_device_to_host_and_back(backend: str) -> None:
    there, here = FedAdam().start(LAYOUT, device=backend), FedAdam().start(LAYOUT)
    model = values_of(9, LAYOUT)
    filled(LAYOUT, backend=backend).finish_step(model, there)
    here.load_state_dict(there.state_dict())
    again = FedAdam().start(LAYOUT, device=backend)
    again.load_bytes(here.to_bytes())

    digests = {
        filled(LAYOUT, backend=backend).finish_step(model, optimizer).digest
        for optimizer in (there, here, again)
    }

    assert len(digests) == 1
    assert there.to_bytes() == here.to_bytes() == again.to_bytes()
    assert (there.device, here.device) == (device_of(backend), None)


# --- refusals -----------------------------------------------------------------------------------


def test_an_optimizer_steps_on_its_own_device_only() -> None:
    optimizer = FedAdam().start(LAYOUT, device="emu:1")
    for backend, where in (("cpu", "the host"), ("emu", "emu:0")):
        with pytest.raises(ConfigError, match=f"are on emu:1, the step is made on {where}"):
            filled(LAYOUT, backend=backend).finish_step(values_of(9, LAYOUT), optimizer)
    mean = filled(LAYOUT).finish().arrays
    with pytest.raises(ConfigError, match="are on emu:1, the step is made on the host"):
        optimizer.step(values_of(9, LAYOUT), mean)
    filled(LAYOUT, backend="emu:1").finish_step(values_of(9, LAYOUT), optimizer)
    for name in ("cpu", "emu:7"):
        with pytest.raises((ConfigError, DeviceError)):
            FedAdam().start(LAYOUT, device=name)


def test_a_model_on_another_device_is_copied_and_never_written_to() -> None:
    model = on_device(values_of(9, LAYOUT), "emu:1", LAYOUT)
    expected = filled(LAYOUT).finish_step(values_of(9, LAYOUT), FedAvg().start(LAYOUT))
    mean = filled(LAYOUT, backend="emu:0")

    found = mean.finish_step(model, FedAvg().start(LAYOUT))

    assert found.digest == expected.digest
    assert isinstance(found.arrays["a"], np.ndarray)
    with pytest.raises(ConfigError, match=r"out\['a'\] is on a device where this step does not"):
        mean.finish_step(model, FedAvg().start(LAYOUT), out=model)


def test_arrays_that_may_only_be_read_or_lie_here_and_there_are_refused() -> None:
    layout = ModelLayout(_native.Layout([("a", "f32", (12,)), ("b", "f32", (12,))]))
    own = _native.DeviceArray("emu:0", np.zeros(12, np.float32), "f32")
    place = own.__cuda_array_interface__["data"][0]
    locked = _native.device_array(Foreign(own, data=(place, True)), kind="emu")
    optimizer = FedAvg().start(layout)
    mean = filled(layout, backend="emu")
    model = values_of(9, layout)
    for out, reason in (
        ({"a": locked, "b": own}, "may only be read"),
        ({"a": own, "b": np.zeros(12, np.float32)}, "is on a device where"),
        ({"a": np.zeros(12, np.float32), "b": own}, "is on a device where"),
        ({"a": own}, "out must have the layout's tensors"),
    ):
        with pytest.raises(ConfigError, match=reason):
            mean.finish_step(model, optimizer, out=out)
    mean.finish_step({"a": locked, "b": own}, optimizer)  # reading is allowed


@every_device
@pytest.mark.parametrize("name", ["a", "h", "b", "w"])
def test_values_that_do_not_fit_name_their_tensor_and_spoil_the_optimizer(
    name: str, backend: str
) -> None:
    layout = WITH_DOUBLES
    largest = {"a": 3.4e38, "h": 65504.0, "b": 3.38e38, "w": 1.79e308}[name]
    model = values_of(9, layout)
    model[name].reshape(-1)[-1] = largest
    update = {tensor: np.ones_like(array) for tensor, array in model.items()}
    update[name].reshape(-1)[-1] = largest
    mean = Aggregator(layout, backend=backend)
    mean.add(update, weight=1, site="lyon")
    optimizer = FedAvgM().start(layout, device=backend)

    with small_windows(), pytest.raises(ConfigError, match=f"new values of tensor '{name}' do not"):
        mean.finish_step(on_device(model, backend, layout), optimizer)

    with pytest.raises(ConfigError, match="last step failed"):
        optimizer.state()


@every_device
@pytest.mark.parametrize("moment", ["first", "second"])
def test_a_moment_that_does_not_fit_is_refused(moment: str, backend: str) -> None:
    layout = ModelLayout(_native.Layout([("v", "f32", (70,)), ("w", "f32", (70,))]))
    optimizer = FedAdam(learning_rate=1e-30).start(layout, device=backend)
    value = {"first": 3e38, "second": 3e20}[moment]
    update = {name: np.full(70, value, np.float32) for name in ("v", "w")}
    mean = Aggregator(layout, backend=backend)
    mean.add(update, weight=1, site="lyon")
    with pytest.raises(ConfigError, match="new values of tensor 'v' do not fit"):
        mean.finish_step(values_of(1, layout), optimizer, gain=1e3)


def test_a_borrowed_update_that_was_changed_spoils_the_step() -> None:
    update = values_of(1, LAYOUT)
    mean = Aggregator(LAYOUT, backend="emu")
    mean.add(update, weight=1, site="lyon", copy=False)
    update["a"][-1] = 1e9
    optimizer = FedAdam().start(LAYOUT, device="emu")
    with pytest.raises(ConfigError, match="changed"):
        mean.finish_step(values_of(9, LAYOUT), optimizer)
    with pytest.raises(ConfigError, match="last step failed"):
        optimizer.state()


def test_a_device_that_is_lost_gives_no_model() -> None:
    layout = ModelLayout(_native.Layout([("a", "f32", (4200,)), ("n", "i64", (2,))]))
    expected = filled(layout).finish_step(values_of(9, layout), FedAdam().start(layout))

    def step() -> SteppedModel:
        optimizer = FedAdam().start(layout, device="emu")
        try:
            return filled(layout, backend="emu").finish_step(
                values_of(9, layout), optimizer, digest=True
            )
        except DeviceError:
            if optimizer.steps == 0:
                with pytest.raises((ConfigError, DeviceError)):
                    optimizer.state()
            raise

    with small_windows():
        found = results_of_losses(step, step=3)

    digests = [model.digest if model is not None else "" for model in found]
    assert set(digests) == {"", expected.digest}
    done = digests.index(expected.digest)
    assert digests == [""] * done + [expected.digest] * (len(digests) - done)
    assert done > len(digests) // 2


def test_a_device_without_room_says_what_was_needed() -> None:
    _native.use_emulator(memory_bytes=10_000)
    with pytest.raises(DeviceError, match=r"allocating memory on emu:0 \(36000 bytes\) failed"):
        FedAdam().start(LAYOUT, device="emu")
    assert _native.emulator_bytes() == 0
