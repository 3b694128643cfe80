"""Arrays that lie in device memory: taken where they are, copied when asked, handed back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from support.devices import every_device, on_device
from test_device_mean import LAYOUT, WIDE, digest_of, encoded, values_of
from veilsum import Aggregator, ModelLayout, _native
from veilsum.arrays import as_native
from veilsum.errors import ConfigError, DeviceError, PeerError


def layout_of(dtype: str, *sizes: int) -> ModelLayout:
    return ModelLayout(
        _native.Layout([(f"t{number}", dtype, (size,)) for number, size in enumerate(sizes)])
    )


@every_device
@pytest.mark.parametrize("layout", [LAYOUT, WIDE], ids=["f32", "f64"])
def test_resident_updates_give_the_bits_of_the_cpu(layout: ModelLayout, backend: str) -> None:
    updates = [values_of(number, layout) for number in range(4)]
    expected = digest_of(updates, "cpu", layout)

    for tiles in (1, 3, 256):
        _native.use_pass_memory(window_bytes=1 << 30, window_tiles=tiles)
        resident = [on_device(update, backend, layout) for update in updates]
        assert digest_of(resident, backend, layout, copy=False) == expected
        assert digest_of(resident, backend, layout) == expected  # copied to the host
        assert digest_of([resident[0], *updates[1:]], backend, layout, copy=False) == expected
    assert digest_of(resident, "cpu", layout, copy=False) == expected


@every_device
@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32", "f64"])
def test_tensors_of_one_width_are_taken_in_their_own_format(dtype: str, backend: str) -> None:
    # Whole tiles in place, tiles with parts of several tensors, tensors of nothing, a short end.
    layout = layout_of(dtype, 4096 * 3, 100, 0, 70, 4096 * 2 + 64, 1)
    updates = [values_of(number, layout) for number in range(3)]
    resident = [on_device(update, backend, layout) for update in updates]
    _native.use_pass_memory(window_bytes=1 << 30, window_tiles=2)
    assert digest_of(resident, backend, layout, copy=False) == digest_of(updates, "cpu", layout)


@every_device
def test_resident_and_encoded_updates_add_up_alike(backend: str) -> None:
    updates: list[Any] = [values_of(number) for number in range(3)]
    codes = encoded("int8", 2)
    resident = [on_device(update, backend, LAYOUT) for update in updates]
    assert digest_of([*resident, *codes], backend, copy=False) == digest_of(
        [*updates, *codes], "cpu"
    )


@every_device
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["a", "b", "c", "d"])
def test_a_resident_value_that_is_not_finite_is_refused(
    name: str, bad: float, backend: str
) -> None:
    update = values_of(0)
    update[name][-1] = bad
    mean = Aggregator(LAYOUT, backend=backend)
    with pytest.raises(PeerError, match=f"not finite in tensor '{name}'"):
        mean.add(on_device(update, backend, LAYOUT), weight=1, site="lyon", copy=False)
    assert mean.sites == ()


@every_device
@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32", "f64"])
def test_resident_arrays_that_were_changed_are_refused(dtype: str, backend: str) -> None:
    layout = layout_of(dtype, 5000)
    first, second = values_of(0, layout), values_of(1, layout)
    second["t0"][17] = 3.0e4
    resident = on_device(first, backend, layout)["t0"]
    mean = Aggregator(layout, backend=backend)
    mean.add({"t0": resident}, weight=1, site="lyon", copy=False)
    _native.overwrite_device_array(resident, on_device(second, backend, layout)["t0"])
    with pytest.raises(ConfigError, match="changed"):
        mean.finish()


class Foreign:
    """What CuPy's arrays say of themselves, over memory of a DeviceArray."""

    def __init__(self, array: _native.DeviceArray, **changes: Any) -> None:
        self._owner = array
        self.__cuda_array_interface__ = {**array.__cuda_array_interface__, **changes}


def test_an_array_of_another_library_is_read_where_it_lies() -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    own = _native.DeviceArray("emu:1", values, "f32")

    for stream in (None, 1, 2):
        taken = _native.device_array(Foreign(own, stream=stream), kind="emu")
        assert (taken.device, taken.shape, taken.dtype) == ("emu:1", (3, 4), "f32")
        assert taken.__cuda_array_interface__["data"] == own.__cuda_array_interface__["data"]
        assert (taken.to_host() == values).all()
    assert (
        _native.device_array(Foreign(own, strides=(16, 4)), kind="emu").to_host() == values
    ).all()


def test_an_array_lives_as_long_as_somebody_reads_it() -> None:
    own = _native.DeviceArray("emu:0", np.ones(1000), "f64")
    taken = _native.device_array(Foreign(own), kind="emu")
    del own
    assert _native.emulator_bytes() == 8000
    assert (taken.to_host() == 1).all()
    del taken
    assert _native.emulator_bytes() == 0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"strides": (4, 12)}, "C-contiguous"),
        ({"strides": ()}, "2 dimensions and 0 strides"),
        ({"strides": (4,)}, "2 dimensions and 1 strides"),
        ({"shape": (3, -4)}, "cannot have the shape"),
        ({"shape": (-3, -4)}, "cannot have the shape"),
        ({"shape": (2**62, 4)}, "cannot have the shape"),
        ({"shape": (2**40, 2**40), "strides": (0, 4)}, "cannot have the shape"),
        ({"typestr": ">f4"}, "byte order"),
        ({"mask": 1}, "mask"),
        ({"typestr": "<c8"}, "dtype"),
        ({"typestr": "|b1"}, "dtype"),
        ({"data": (np.zeros(12).ctypes.data, False)}, "not that of a device"),
    ],
)
def test_what_cannot_be_read_in_place_is_refused(changes: dict[str, Any], reason: str) -> None:
    own = _native.DeviceArray("emu:0", np.zeros((3, 4), np.float32), "f32")
    with pytest.raises(ConfigError, match=reason):
        _native.device_array(Foreign(own, **changes), kind="emu")


def test_values_that_are_not_aligned_are_refused_before_a_kernel_faults_on_them() -> None:
    own = _native.DeviceArray("emu:0", np.zeros((3, 4), np.float32), "f32")
    place = own.__cuda_array_interface__["data"][0]
    with pytest.raises(ConfigError, match="not aligned"):
        _native.device_array(Foreign(own, shape=(2,), data=(place + 2, False)), kind="emu")


@pytest.mark.parametrize(
    ("shape", "strides"), [((4, 0), (4, 4)), ((2, 0, 3), (12, 12, 4)), ((0,), None)]
)
def test_an_array_of_nothing_has_any_strides(
    shape: tuple[int, ...], strides: tuple[int, ...] | None
) -> None:
    own = _native.DeviceArray("emu:0", np.zeros(4, np.float32), "f32")
    taken = _native.device_array(
        Foreign(own, shape=shape, strides=strides, data=(0, False)), kind="emu"
    )
    assert taken.to_host().shape == shape


class Lent:
    """What a library with DLPack says of an array of its own."""

    def __init__(self, array: _native.DeviceArray, where: Any = None) -> None:
        self._array = array
        self._where = array.__dlpack_device__() if where is None else where

    def __dlpack_device__(self) -> Any:
        return self._where

    def __dlpack__(self, *, stream: int) -> Any:
        assert stream
        return self._array.__dlpack__(stream=stream)


def test_an_array_comes_in_through_dlpack_where_it_lies() -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    lent = Lent(_native.DeviceArray("emu:1", values, "f32"))

    assert _native.is_device_array(lent)
    taken = _native.device_array(lent)
    del lent

    assert (taken.device, taken.shape, taken.dtype) == ("emu:1", (3, 4), "f32")
    assert (taken.to_host() == values).all()
    del taken
    assert _native.emulator_bytes() == 0


def test_an_array_that_is_elsewhere_than_it_says_is_refused() -> None:
    own = _native.DeviceArray("emu:1", np.zeros(4, np.float32), "f32")
    with pytest.raises(ConfigError, match="not on the device that it says"):
        _native.device_array(Lent(own, (12, 0)))
    for where in (("x", 0), (12,), None.__class__, 3):
        assert not _native.is_device_array(Lent(own, where))


def test_a_wrong_shape_is_refused_before_anything_is_copied() -> None:
    layout = layout_of("f32", 4)
    own = _native.DeviceArray("emu:0", np.zeros(5, np.float32), "f32")
    _native.use_emulator(lost_at_call=1)  # no call is made
    with pytest.raises(PeerError, match=r"shape \(5,\), the layout has \(4,\)"):
        Aggregator(layout).add({"t0": own}, weight=1, site="lyon")


def test_an_array_on_another_device_than_the_aggregators_is_copied() -> None:
    updates = [values_of(number) for number in range(2)]
    resident = [on_device(update, "emu:1", LAYOUT) for update in updates]
    assert digest_of(resident, "emu:0", copy=False) == digest_of(updates, "cpu")


@every_device
def test_a_result_is_handed_back_on_a_device(backend: str) -> None:
    mean = Aggregator(LAYOUT, backend=backend)
    mean.add(values_of(0), weight=1, site="lyon")
    result = mean.finish()

    there = result.to_device(f"{backend}:1" if backend == "emu" else "cuda:0")

    assert list(there) == list(result.arrays)
    for name, array in result.arrays.items():
        assert as_native(there[name], name)[0].tobytes() == array.tobytes()
    assert (there["a"].dtype, there["steps"].dtype, there["a"].shape) == ("f32", "i64", (5000,))


def test_dlpack_hands_on_a_device_array_without_a_copy() -> None:
    own = _native.DeviceArray("emu:1", np.arange(6, dtype=np.int16).reshape(2, 3), "i16")
    assert own.__dlpack_device__() == (12, 1)  # an extension of DLPack's device types
    capsule = own.__dlpack__(stream=None, max_version=(1, 0))
    del own
    assert _native.emulator_bytes() == 12
    del capsule
    assert _native.emulator_bytes() == 0


def test_a_tensor_on_a_device_that_this_machine_does_not_have_is_refused() -> None:
    class Elsewhere:
        __cuda_array_interface__ = {  # noqa: RUF012
            "version": 3,
            "shape": (2,),
            "typestr": "<f4",
            "data": (4096, False),
        }

    with pytest.raises((DeviceError, ConfigError)):
        as_native(Elsewhere(), "w")


def test_a_device_that_is_lost_while_an_update_arrives_leaves_the_set_as_it_was() -> None:
    update = on_device(values_of(0), "emu", LAYOUT)
    held = _native.emulator_bytes()
    mean = Aggregator(LAYOUT, backend="emu")
    _native.use_emulator()
    mean.add(update, weight=1, site="quito", copy=False)
    calls = _native.emulator_calls()
    mean.remove("quito")

    for call in range(1, calls - 3):  # what comes after are calls that give back
        _native.use_emulator(lost_at_call=call)
        with pytest.raises(DeviceError, match="lost"):
            mean.add(update, weight=1, site="lyon", copy=False)
        _native.use_emulator()
        assert mean.sites == ()
        assert _native.emulator_bytes() == held
