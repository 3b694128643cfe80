"""A model's layout: its canonical bytes, where tensors lie, what is refused."""

from __future__ import annotations

import hashlib
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import codecs as reference
from veilsum import ModelLayout
from veilsum._native import Layout
from veilsum.errors import ConfigError, DecodeError
from veilsum.model import fit_arrays, result_digest

TENSORS = [
    ("conv.weight", "f32", (8, 3, 3, 3)),
    ("größe", "bf16", (65,)),
    ("steps", "i64", ()),
    ("empty", "f64", (0, 7)),
    ("half", "f16", (64,)),
    ("counts", "u8", (3, 5)),
]

names = st.text(alphabet=st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20)
tensor_lists = st.lists(
    st.tuples(
        names,
        st.sampled_from(reference.DTYPES),
        st.lists(st.integers(0, 40), max_size=4).map(tuple),
    ),
    min_size=1,
    max_size=12,
    unique_by=lambda tensor: tensor[0],
)


@given(tensor_lists)
def test_canonical_bytes_are_those_of_the_format_and_parse_back(
    tensors: list[tuple[str, str, tuple[int, ...]]],
) -> None:
    layout = Layout(tensors)

    assert layout.to_bytes() == reference.layout_bytes(tensors)
    assert Layout.from_bytes(layout.to_bytes()).tensors == tuple(tensors)


@given(tensor_lists)
def test_tensors_start_on_multiples_of_64_in_the_space_of_their_kind(
    tensors: list[tuple[str, str, tuple[int, ...]]],
) -> None:
    layout = Layout(tensors)

    for group in (1, 2):
        spans, size = reference.offsets(tensors, group)
        assert layout.offsets(group) == tuple(spans)
        assert layout.group_size(group) == size
    assert layout.size == sum(int(np.prod(shape, dtype=int)) for _, _, shape in tensors)


@given(st.data())
@settings(max_examples=300)
def test_a_changed_byte_gives_another_layout_or_none(data: st.DataObject) -> None:
    encoded = bytearray(Layout(TENSORS).to_bytes())
    place = data.draw(st.integers(0, len(encoded) - 1))
    encoded[place] ^= data.draw(st.integers(1, 255))

    try:
        layout = Layout.from_bytes(encoded)
    except DecodeError:
        return
    assert layout.tensors != tuple(TENSORS)
    assert layout.to_bytes() == bytes(encoded)


@given(st.binary(max_size=200))
def test_any_bytes_either_parse_or_raise_a_decode_error(junk: bytes) -> None:
    for data in (junk, b"VLL1" + junk, b"VLL1\1\0\0\0" + junk):
        try:
            layout = Layout.from_bytes(data)
        except DecodeError:
            continue
        assert layout.to_bytes() == data


@pytest.mark.parametrize("end", range(len(Layout(TENSORS).to_bytes())))
def test_truncated_bytes_are_refused(end: int) -> None:
    with pytest.raises(DecodeError):
        Layout.from_bytes(Layout(TENSORS).to_bytes()[:end])


def test_a_tensor_count_is_believed_only_as_far_as_there_are_bytes() -> None:
    with pytest.raises(DecodeError, match="at most 65536"):
        Layout.from_bytes(b"VLL1" + struct.pack("<I", 2**32 - 1))
    with pytest.raises(DecodeError, match="truncated"):
        Layout.from_bytes(b"VLL1" + struct.pack("<I", 65536))


@pytest.mark.parametrize(
    "name",
    [b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82", b"a\x80"],
    ids=["no lead byte", "overlong", "surrogate", "past the last", "cut off", "stray"],
)
def test_names_that_are_not_utf8_are_refused(name: bytes) -> None:
    data = b"VLL1\1\0\0\0" + struct.pack("<H", len(name)) + name + b"\x03\x00"

    with pytest.raises(DecodeError, match="UTF-8"):
        Layout.from_bytes(data)


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ([], "1 to 65536 tensors"),
        ([("flag", "bool", (3,))], "dtype 'bool'"),
        ([("z", "c64", (3,))], "dtype 'c64'"),
        ([("", "f32", (3,))], "empty name"),
        ([("x" * 513, "f32", (3,))], "513 bytes"),
        ([("\ud800", "f32", (3,))], "UTF-8"),
        ([("x", "f32", (3,)), ("x", "i8", (1,))], "used twice"),
        ([("x", "f32", (1,) * 9)], "rank 9"),
        ([("x", "f32", (2**20, 2**20, 2))], r"2\*\*40"),
        ([("x", "f32", (2**63, 0))], r"2\*\*40"),
        ([("x", "f32", (2**40,)), ("y", "f32", (1,))], r"2\*\*40 coordinates"),
        ([("x", "f32", (-1,))], "dimension"),
    ],
)
def test_limits_of_the_format_are_settings_errors(
    tensors: list[tuple[str, str, tuple[int, ...]]], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        Layout(tensors)


def test_the_longest_name_and_the_highest_rank_are_allowed() -> None:
    layout = Layout([("ä" * 256, "f32", (1,) * 8)])

    assert Layout.from_bytes(layout.to_bytes()).tensors == layout.tensors


def test_a_model_layout_keeps_the_order_and_compares_by_content() -> None:
    arrays = {"b": np.zeros((2, 3), np.float32), "a": np.zeros(4, np.int64)}

    layout = ModelLayout.from_arrays(arrays)

    assert layout.names == ("b", "a")
    assert layout.size == 10
    assert layout.digest == hashlib.sha256(layout.to_bytes()).digest()
    assert layout == ModelLayout.from_bytes(layout.to_bytes())
    assert hash(layout) == hash(ModelLayout.from_bytes(layout.to_bytes()))
    assert layout != ModelLayout.from_arrays(dict(sorted(arrays.items())))


def test_the_result_digest_is_over_layout_and_little_endian_values() -> None:
    arrays = {
        "w": np.array([[1.5, -2.0]], ">f4"),
        "n": np.array(7, np.int64),
        "h": np.array([0x3F80], np.uint16),
    }
    layout = ModelLayout(Layout([("w", "f32", (1, 2)), ("n", "i64", ()), ("h", "bf16", (1,))]))
    expected = layout.digest + struct.pack("<ffqH", 1.5, -2.0, 7, 0x3F80)

    assert result_digest(layout, arrays) == hashlib.sha256(expected).hexdigest()
    as_floats = arrays | {"h": np.array([1.0], np.float32)}
    assert result_digest(layout, as_floats) == hashlib.sha256(expected).hexdigest()


def test_a_digest_of_floats_that_are_no_bfloat16_is_refused() -> None:
    layout = ModelLayout(Layout([("h", "bf16", (1,))]))

    with pytest.raises(ConfigError, match="'h' holds values that are no bfloat16"):
        result_digest(layout, {"h": np.array([1.001], np.float32)})


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"w": np.zeros(3, np.float32)}, r"1 \('n'\) missing"),
        (
            {"w": np.zeros(3, np.float32), "n": np.zeros(1, np.int64), "v": np.zeros(1)},
            r"1 \('v'\) unknown",
        ),
        ({"w": np.zeros((1, 3), np.float32), "n": np.zeros(1, np.int64)}, r"shape \(1, 3\)"),
        ({"w": np.zeros(3, np.float64), "n": np.zeros(1, np.int64)}, "'w' is f64"),
    ],
)
def test_arrays_that_are_not_the_layouts_are_refused(
    arrays: dict[str, np.ndarray], reason: str
) -> None:
    layout = ModelLayout(Layout([("w", "f32", (3,)), ("n", "i64", (1,))]))

    with pytest.raises(ConfigError, match=reason):
        fit_arrays(layout, arrays)
