"""Foreign payloads of other formats are read or refused with DecodeError, within their size."""

from __future__ import annotations

import copy
import math
import struct
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from support.mutations import Mutation, mutation, overwrite
from veilsum import EncodedUpdate, decode, encode
from veilsum.arrays import as_native
from veilsum.codecs import zstd
from veilsum.codecs.imports import (
    GgmlTensor,
    ggml_arrays,
    import_ggml,
    import_nvflare,
    nvflare_arrays,
)
from veilsum.codecs.nvflare import _FP4, _NF4, dynamic_map
from veilsum.errors import ConfigError, DecodeError

KIB = 1024


def within(limit: int, action: Callable[[], Any]) -> Any:
    """What comes out, or None if it is refused; NumPy's and Python's memory stays below."""
    tracemalloc.start()
    try:
        return action()
    except DecodeError:
        return None
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < limit


# --- compressed chunks ---------------------------------------------------------------------

UPDATE = encode(
    {"w": np.repeat(np.arange(40, dtype=np.float32), 50)}, "f32", compression="zstd", level=19
)
CHUNK = bytes(UPDATE.body[0])
BODY = CHUNK[64:]
DICTIONARY = zstandard.train_dictionary(
    1000, [struct.pack("<20f", *range(k, k + 20)) * 3 for k in range(200)]
)


def frame_of(content: bytes, **options: Any) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(content)


def frames() -> st.SearchStrategy[bytes]:
    """Frames of the body, and such as somebody might send instead."""
    content = st.one_of(
        st.just(BODY),
        st.integers(0, 2 * len(BODY)).map(lambda n: (BODY * 2)[:n]),
        st.sampled_from([1 << 20, 1 << 24]).map(bytes),  # bombs
        st.binary(max_size=100),
    )
    options = st.fixed_dictionaries(
        {
            "level": st.sampled_from([-5, 1, 19]),
            "write_content_size": st.booleans(),
            "write_checksum": st.booleans(),
            "write_dict_id": st.booleans(),
        },
        optional={"dict_data": st.just(DICTIONARY)},
    )
    whole = st.builds(lambda c, o: frame_of(c, **o), content, options)
    skippable = st.builds(
        lambda kind, c: struct.pack("<II", 0x184D2A50 | kind, len(c)) + c,
        st.integers(0, 15),
        st.binary(max_size=20),
    )
    magic = st.binary(max_size=60).map(lambda b: b"\x28\xb5\x2f\xfd" + b)
    one = st.one_of(whole, skippable, magic)
    several = st.lists(one, min_size=1, max_size=3).map(b"".join)
    return st.one_of(
        several,
        st.builds(
            lambda f, ms: _all(ms, f),
            several,
            st.lists(mutation(), min_size=1, max_size=2),
        ),
    )


def _all(mutations: list[Mutation], data: bytes) -> bytes:
    for mutate in mutations:
        data = mutate(data or b"\0")
    return data


def piece_of(frame: bytes) -> bytes:
    header = overwrite(CHUNK[:64], 10, struct.pack("<H", 16 | 8))
    return overwrite(header, 56, struct.pack("<I", len(frame))) + frame


@given(frames())
@settings(max_examples=250)
@example(frame_of(BODY))
@example(frame_of(BODY) + frame_of(b""))
@example(frame_of(bytes(1 << 24)))
def test_any_frame_expands_to_the_size_that_is_due_or_is_refused(frame: bytes) -> None:
    piece = piece_of(frame)

    chunk = within(
        2 * len(CHUNK) + 4 * len(frame) + 64 * KIB, lambda: zstd.expanded(piece, len(CHUNK))
    )

    if chunk is not None:
        assert len(chunk) == len(CHUNK)
        reader = zstandard.ZstdDecompressor().decompressobj()
        reader.decompress(frame)
        assert reader.eof
        assert not reader.unused_data, "nothing follows the frame"
        pieces = [UPDATE.chunks()[0], piece]
        update = within(256 * KIB, lambda: EncodedUpdate.from_chunks(pieces))
        assert (update is not None) == (bytes(chunk[64:]) == BODY), "else its checksum is wrong"


# --- GGML ----------------------------------------------------------------------------------

shapes = st.one_of(
    st.sampled_from([(32,), (2, 32), (64, 1), (0, 32), (32, 0, 1)]),
    st.lists(
        st.one_of(
            st.integers(-3, 70),
            st.sampled_from([2**31, 2**32, 2**40, 2**63, 2**64, 2**200, -(2**63)]),
            st.sampled_from([np.uint64(2**32), np.uint64(2**63), np.int32(32), 32.0, None, "32"]),
        ),
        max_size=4,
    ).map(tuple),
    st.integers(5, 100).map(lambda rank: (32,) + (1,) * rank),
)


def blocks(kind: str) -> st.SearchStrategy[bytes]:
    size = {"Q8_0": 34, "Q4_0": 18}[kind]
    scale = st.sampled_from([0.0, -0.0, 1.0, -1.0, 6e-8, 65504.0, math.inf, -math.inf, math.nan])
    block = st.builds(
        lambda s, c: struct.pack("<e", s) + c,
        st.one_of(scale, st.floats(width=16)),
        st.binary(min_size=size - 2, max_size=size - 2),
    )
    return st.one_of(st.lists(block, max_size=4).map(b"".join), st.binary(max_size=150))


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
@given(data=st.data())
@settings(max_examples=150)
def test_any_ggml_tensor_is_read_or_refused(kind: Any, data: st.DataObject) -> None:
    name = data.draw(st.one_of(st.just("w"), st.text(max_size=3), st.just("x" * 600)))
    tensor = GgmlTensor(data.draw(blocks(kind)), data.draw(shapes), kind)
    limit = 64 * KIB + 40 * len(bytes(tensor.data))

    arrays = within(limit, lambda: ggml_arrays({name: tensor}))
    encoded = within(limit, lambda: import_ggml({name: tensor}, "f32"))
    taken = within(limit, lambda: import_ggml({name: tensor})) if kind == "Q8_0" else None

    if arrays is not None:
        assert np.isfinite(arrays[name]).all()
    for update in (encoded, taken):
        if update is not None:
            assert arrays is not None
            again = decode(EncodedUpdate.from_bytes(update.to_bytes()))
            assert np.array_equal(again[name], arrays[name])


# --- NVFLARE -------------------------------------------------------------------------------


def payload(method: str, nested: bool) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """Two tensors as bitsandbytes would send them, small."""
    if method == "float16":
        codes: Any = np.linspace(-1, 1, 70).astype(np.float16)
        state: dict[str, Any] = {}
    elif method == "blockwise8":
        codes = np.arange(70, dtype=np.uint8)
        state = {
            "absmax": np.full(1, 2, np.float32),
            "code": np.array(dynamic_map(), np.float32),
        }
    else:
        codes = np.arange(35, dtype=np.uint8)[:, None]
        table = _NF4 if method == "normfloat4" else _FP4
        state = {
            "absmax": np.array([1, 2], np.float32),
            "quant_map": np.array(table, np.float32),
            "blocksize": 64,
            "quant_type": "nf4",
            "dtype": "float32",
            "shape": (7, 10),
        }
        if nested:
            state |= {
                "absmax": np.array([3, 200], np.uint8),
                "nested_absmax": np.ones(1, np.float32),
                "nested_blocksize": 256,
                "nested_quant_map": np.array(dynamic_map(), np.float32),
                "nested_offset": 0.5,
            }
    data = {"w": codes, "v": codes.copy()}
    meta = {
        "quant_state": {"w": state, "v": copy.deepcopy(state)},
        "source_datatype": {"w": "float32", "v": "float64" if method == "float16" else "bfloat16"},
        "PROCESSED_ALGORITHM": method,
    }
    return data, meta


def junk() -> st.SearchStrategy[Any]:
    """What a deserializer may hand over in place of anything."""
    dtypes = ["f2", ">f4", "f4", "f8", "u1", "i8", "c8", "U2", "M8[s]", "O", "?", [("a", "f4")]]
    array = st.builds(
        lambda dtype, shape: np.zeros(shape, dtype),
        st.sampled_from(dtypes),
        st.sampled_from([(), (0,), (1,), (2,), (16,), (256,), (70,), (7, 10), (35, 1), (1,) * 12]),
    )
    numbers = [0, 1, -1, 64, 2**31, 2**62, 2**63, 2**64, 10**400, True, 0.5, -0.0]
    floats = [math.nan, math.inf, -math.inf, 1e39, 3e38]
    tensors = [
        torch.ones(70), torch.ones(35, 1, dtype=torch.uint8), torch.ones(70, dtype=torch.bfloat16),
        torch.ones(70, device="meta"), torch.tensor(True), torch.tensor(64),
        torch.ones(7, 10).to_sparse(),
    ]  # fmt: skip
    for tensor in tensors:  # torch imports parts of itself when it first refuses or prints one
        with suppress(ConfigError):
            as_native(tensor, repr(tensor))
    special = st.builds(
        lambda size, value: np.full(size, value, np.float32),
        st.sampled_from([1, 2, 16, 256]),
        st.sampled_from([math.nan, math.inf, -1.0, 3.4e38, 1e-45]),
    )
    return st.one_of(
        array,
        special,
        st.sampled_from([*numbers, *floats, *tensors, None, "", "w", b"x", (), [], {}]),
        st.sampled_from(
            [(7, 10), [70], (35, 2), (-7, -10), (2**40, 0), (70.0,), ("70",), (1,) * 40]
        ),
    )


def replaced(root: Any, path: list[int], new: Any) -> None:
    """Puts `new` in the place that the path leads to, as far as there are mappings."""
    while True:
        key = sorted(root, key=repr)[path[0] % len(root)]
        if len(path) > 1 and isinstance(root[key], dict) and root[key]:
            root, path = root[key], path[1:]
            continue
        if new is KeyError:
            del root[key]
        else:
            root[key] = new
        return


METHODS = [
    ("float16", False), ("blockwise8", False), ("float4", False), ("normfloat4", False),
    ("normfloat4", True),
]  # fmt: skip


@pytest.mark.parametrize(("method", "nested"), METHODS)
@given(
    changes=st.lists(
        st.tuples(
            st.lists(st.integers(0, 9), min_size=1, max_size=4),
            st.one_of(junk(), st.just(KeyError)),
        ),
        max_size=3,
    )
)
@settings(max_examples=150)
def test_any_nvflare_payload_is_read_or_refused(
    method: str, nested: bool, changes: list[tuple[list[int], Any]]
) -> None:
    data, meta = payload(method, nested)
    whole = {"data": data, "meta": meta}
    for path, new in changes:
        replaced(whole, [1, *path] if path[0] % 4 else path, new)
        if len(whole) < 2 or not whole["meta"]:
            return
    found = tuple(whole.values())

    arrays = within(256 * KIB, lambda: nvflare_arrays(*found))
    update = within(256 * KIB, lambda: import_nvflare(*found, "f32"))

    if not changes:
        assert arrays is not None
        assert update is not None
    if arrays is not None:
        assert all(np.isfinite(array).all() for array in arrays.values())
    if update is not None:
        assert arrays is not None
        for name, array in decode(update).items():
            assert np.array_equal(array, arrays[name])


@pytest.mark.parametrize("method", ["blockwise8", "normfloat4"])
@given(mutations=st.lists(mutation(), min_size=1, max_size=2), field=st.integers(0, 9))
@settings(max_examples=100)
def test_changed_bytes_of_an_nvflare_field_are_read_or_refused(
    method: str, mutations: list[Mutation], field: int
) -> None:
    data, meta = payload(method, method == "normfloat4")
    state = meta["quant_state"]["w"]
    names = [key for key, value in state.items() if isinstance(value, np.ndarray)]
    name = names[field % len(names)]
    changed = _all(mutations, state[name].tobytes())
    item = state[name].itemsize
    state[name] = np.frombuffer(changed[: len(changed) // item * item], state[name].dtype)

    arrays = within(256 * KIB, lambda: nvflare_arrays(data, meta))

    if arrays is not None:
        assert np.isfinite(arrays["w"]).all()
