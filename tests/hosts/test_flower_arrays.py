"""Flower's records and arrays: read in place, written as Flower writes them, never unpickled."""

from __future__ import annotations

import io
import pickle
from contextlib import suppress

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veilsum import ConfigError, DecodeError, ModelLayout

pytest.importorskip("flwr", reason="flwr is not installed (extra `flower`)")

from flwr.app import Array, ArrayRecord

from veilsum.integrations.flower.arrays import layout_of, read_arrays, read_model, to_record

RANDOM = np.random.default_rng(3)
ARRAYS = {
    "weight": RANDOM.normal(size=(3, 5)).astype(np.float32),
    "half": RANDOM.normal(size=7).astype(np.float16),
    "double": RANDOM.normal(size=(2, 2, 2)),
    "num_batches_tracked": np.array(41, np.int64),
    "empty": np.zeros((0, 4), np.float32),
    "byte": np.arange(4, dtype=np.uint8),
}


def saved(array: np.ndarray, **options: bool) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def record_of(data: bytes, dtype: str = "float32") -> ArrayRecord:
    array = Array(dtype=dtype, shape=(2,), stype="numpy.ndarray", data=data)
    return ArrayRecord({"w": array})


def test_arrays_are_read_where_they_lie():
    record = ArrayRecord({name: Array(values) for name, values in ARRAYS.items()})

    found = read_arrays(record)

    assert list(found) == list(ARRAYS)
    for name, values in ARRAYS.items():
        assert found[name].dtype == values.dtype
        assert np.array_equal(found[name], values)
        lies_in = np.frombuffer(record[name].data, np.uint8)
        assert values.size == 0 or np.shares_memory(found[name], lies_in)
        assert not found[name].flags.writeable


def test_a_record_is_written_to_the_byte_as_flower_writes_it():
    arrays = {**ARRAYS, "long": np.zeros((1,) * 8, np.int32), "line": np.zeros(100, np.float32)}

    record = to_record(ModelLayout.from_arrays(arrays), dict(arrays))

    assert record == ArrayRecord({name: Array(values) for name, values in arrays.items()})


def test_the_layout_of_a_record_is_that_of_its_arrays():
    record = ArrayRecord({name: Array(values) for name, values in ARRAYS.items()})

    assert layout_of(record) == ModelLayout.from_arrays(ARRAYS)


def test_bfloat16_comes_and_goes_as_its_bit_patterns():
    values = RANDOM.normal(size=(3, 2)).astype(ml_dtypes.bfloat16)
    sent = ArrayRecord({"w": Array(dtype="bfloat16", shape=(3, 2), stype="numpy.ndarray",
                                   data=saved(values))})  # fmt: skip

    layout, found = read_model(sent)

    assert layout == ModelLayout.from_arrays({"w": values})
    assert np.array_equal(found["w"], values.view(np.uint16))
    assert to_record(layout, {"w": values.astype(np.float32)}) == sent


@pytest.mark.parametrize("array", [
    np.asfortranarray(ARRAYS["weight"]),
    ARRAYS["weight"].astype(">f4"),
    np.asfortranarray(ARRAYS["weight"].T),
], ids=["fortran", "big endian", "c and fortran"])  # fmt: skip
def test_other_orders_of_bytes_and_axes_hold_the_same_values(array):
    found = read_arrays(ArrayRecord({"w": Array(array)}))["w"]

    assert found.flags.c_contiguous
    assert found.dtype == np.float32
    assert np.array_equal(found, array)


GOOD = saved(np.ones(2, np.float32))


def npy(shape: str, values: bytes = b"") -> bytes:
    """A file whose header says whatever it says."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + values


class Loud:
    """Whoever unpickles it fails the test."""

    def __reduce__(self):
        return pytest.fail, ("a payload was unpickled",)


@pytest.mark.parametrize(("data", "complaint"), [
    (b"", "not a .npy file"),
    (b"\x93NUMPY", "not a .npy file"),
    (GOOD[:6] + b"\x09" + GOOD[7:], "not a .npy file of version 1 or 2"),
    (pickle.dumps(Loud()), "not a .npy file"),
    (saved(np.array([Loud()], object), allow_pickle=True), "header"),
    (GOOD[:40], "header"),
    (GOOD[:-1], "has 7 bytes of values, its header asks for 8"),
    (GOOD + b"x", "has 9 bytes of values"),
    (GOOD.replace(b"(2,)", b"(-2,)"), "header"),
    (GOOD.replace(b"(2,), }  ", b"(2,) + (), }"), "header"),
    (GOOD.replace(b"(2,), }        ", b"(99999999,), } "), "asks for 399999996"),
    (GOOD.replace(b"<f4", b"<q4"), "header|unknown dtype"),
    (GOOD.replace(b"<f4", b"|V4"), "untyped"),
    (saved(np.array([True, False])), "cannot be averaged"),
    (saved(np.ones(2, np.complex64)), "header"),
    (saved(np.zeros(2, [("a", "<f4")])), "header"),
    (saved(np.array(["ab", "cd"])), "header"),
    (npy("(0, 999999999999999999, 999999999999999999)"), "dimensions that no array has"),
    (npy(f"({'0, ' * 99}0)"), "dimensions that no array has"),
    (npy("(0, 9999999999999999999999)"), "header"),
    (npy("(0 0)"), "header"),
])  # fmt: skip
def test_a_payload_that_is_not_an_array_of_numbers_is_refused(data, complaint):
    with pytest.raises(DecodeError, match=complaint):
        read_arrays(record_of(data))


@settings(max_examples=500, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=4),
       st.integers(0, len(GOOD)), st.binary(max_size=12))  # fmt: skip
def test_whatever_bytes_arrive_they_are_an_array_or_refused(changes, cut, tail):
    data = bytearray(GOOD)
    for place, value in changes:
        data[place] = value
    data[cut:] = tail + (data[cut + len(tail) :] if cut % 2 else b"")

    with suppress(DecodeError):
        read_arrays(record_of(bytes(data), "bfloat16"))


HEADERS = st.from_regex(
    r"\{'descr': '[<>|=][biufVOMS][0-9]{1,2}', 'fortran_order': (True|False), "
    r"'shape': \([0-9, ]{0,30}\), \} {0,3}\n",
    fullmatch=True,
)


@settings(max_examples=200, deadline=None)
@given(HEADERS, st.binary(max_size=16))
def test_whatever_a_header_says_it_is_an_array_or_refused(header, values):
    head = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()

    with suppress(DecodeError):
        read_arrays(record_of(head + values, "bfloat16"))


def test_a_native_payload_is_no_array():
    record = ArrayRecord({"w": Array(dtype="uint8", shape=(1,), stype="veilsum.int8", data=b"x")})

    with pytest.raises(DecodeError, match=r"serialization type 'veilsum\.int8'"):
        read_arrays(record)


def test_a_record_has_every_tensor_of_its_layout():
    layout = ModelLayout.from_arrays(ARRAYS)

    with pytest.raises(ConfigError, match="'weight' is missing"):
        to_record(layout, {"half": ARRAYS["half"]})
