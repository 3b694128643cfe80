"""GGML blocks, held byte for byte to the package gguf."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from veilsum import Aggregator, EncodedUpdate, decode, encode
from veilsum.codecs.imports import GgmlTensor, export_ggml, ggml_arrays, import_ggml
from veilsum.errors import ConfigError, DecodeError

KINDS = {"Q8_0": GGMLQuantizationType.Q8_0, "Q4_0": GGMLQuantizationType.Q4_0}


def model() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(8)
    blocks = rng.normal(size=(3, 64)) * 10.0 ** rng.integers(-9, 4, (3, 1))
    return {
        "a": rng.normal(size=(5, 96)).astype(np.float32),  # 480: ends within 64 coordinates
        "b": blocks.astype(np.float32),
        "zeros": np.zeros(32, np.float32),
        "large": (rng.lognormal(size=(40, 4096)) * 0.01).astype(np.float32),
    }


def quantized(kind: str) -> dict[str, GgmlTensor]:
    return {
        name: GgmlTensor(quants.quantize(array, KINDS[kind]).tobytes(), array.shape, kind)  # type: ignore[arg-type]
        for name, array in model().items()
    }


def block(scale: float, codes: list[int], kind: str = "Q8_0") -> GgmlTensor:
    half = np.float16(scale).tobytes()
    dtype = np.int8 if kind == "Q8_0" else np.uint8
    return GgmlTensor(half + np.array(codes, dtype).tobytes(), (32,), kind)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_those_of_gguf(kind: str) -> None:
    arrays = ggml_arrays(quantized(kind))

    assert list(arrays) == list(model())
    for name, tensor in quantized(kind).items():
        data = np.frombuffer(tensor.data, np.uint8).reshape(*tensor.shape[:-1], -1)
        assert np.array_equal(arrays[name], quants.dequantize(data, KINDS[kind]))
        assert arrays[name].shape == tensor.shape


def test_q8_0_is_taken_over_and_given_back_byte_for_byte() -> None:
    tensors = {name: tensor for name, tensor in quantized("Q8_0").items() if name != "b"}

    update = import_ggml(tensors)
    back = export_ggml(EncodedUpdate.from_bytes(update.to_bytes()))

    assert update.codec == "int8/b32/f16"
    for name, tensor in tensors.items():
        assert back[name].data == tensor.data
        assert back[name].shape == tensor.shape
        assert np.array_equal(decode(update)[name], ggml_arrays(tensors)[name])


def test_codes_under_a_scale_that_became_zero_mean_zero() -> None:
    # Values so small that gguf's half scale is 0, with codes that are not.
    tensors = {"b": quantized("Q8_0")["b"], "t": block(0.0, [5] * 32)}

    update = import_ggml(tensors)

    for name, array in ggml_arrays(tensors).items():
        assert np.array_equal(decode(update)[name], array)
        assert not np.signbit(decode(update)[name][array == 0]).any()


def test_our_own_blocks_are_read_by_gguf() -> None:
    update = encode(model() | {"b": np.ones(64, np.float32)}, "int8/b32/f16")

    for name, tensor in export_ggml(update).items():
        data = np.frombuffer(tensor.data, np.uint8).reshape(-1, 34)
        values = quants.dequantize(data, GGMLQuantizationType.Q8_0)
        assert np.array_equal(values.reshape(tensor.shape), decode(update)[name])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("codec", "options"), [("f32", {}), ("int8", {"block": 32}), ("eden4", {})]
)
def test_a_named_codec_encodes_the_exact_values(
    kind: str, codec: str, options: dict[str, Any]
) -> None:
    tensors = quantized(kind) | {"b": GgmlTensor(b"", (0, 32), kind)}  # type: ignore[arg-type]
    options |= {"update_id": 3}
    expected = encode(ggml_arrays(tensors), codec, **options)

    assert import_ggml(tensors, codec, **options).to_bytes() == expected.to_bytes()


def test_an_imported_update_is_summed_like_its_values() -> None:
    tensors = quantized("Q8_0")
    update = import_ggml(tensors)
    digests = set()
    for form in (update, update.to_bytes()):
        aggregator = Aggregator(update.layout)
        aggregator.add(form, weight=3, site="a")
        result = aggregator.finish()
        digests.add(result.digest)
        for name, array in ggml_arrays(tensors).items():
            assert np.array_equal(result.arrays[name], array)
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (block(-1.0, [1] * 32), "negative block scale"),
        (block(1.0, [-128] + [1] * 31), "code -128"),
        (block(math.inf, [1] * 32), "not finite"),
        (block(math.nan, [0] * 32), "not finite"),
        (GgmlTensor(bytes(33), (32,)), "has 33 bytes"),
        (GgmlTensor(bytes(34), (33,)), "not of blocks of 32"),
        (GgmlTensor(bytes(34), (2**40, 32)), "has 34 bytes"),
        (GgmlTensor(bytes(34), (-1, -32)), "not of blocks of 32"),
    ],
)
def test_blocks_that_cannot_be_taken_over_are_refused(tensor: GgmlTensor, reason: str) -> None:
    with pytest.raises(DecodeError, match=f"tensor 'w' (has .*)?{reason}"):
        import_ggml({"w": tensor})


def test_what_int8_does_not_have_can_be_encoded_anew() -> None:
    for tensor in (block(-1.0, [1] * 32), block(1.0, [-128] + [1] * 31)):
        update = import_ggml({"w": tensor}, "f32")
        assert np.array_equal(decode(update)["w"], ggml_arrays({"w": tensor})["w"])
    q4 = block(-0.5, [0x0F, 0xF0] * 8, "Q4_0")
    assert ggml_arrays({"w": q4})["w"].tolist() == [-3.5, 4.0] * 8 + [4.0, -3.5] * 8


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: import_ggml(quantized("Q4_0")), "Q4_0, which no codec holds"),
        (lambda: import_ggml(quantized("Q8_0"), block=32), "option 'block' is of a codec"),
        (lambda: ggml_arrays({"w": GgmlTensor(b"", (0,), "Q5_0")}), "'Q5_0', known are Q8_0, Q4_0"),  # type: ignore[arg-type]
        (lambda: export_ggml(encode(model(), "int8")), "from codec int8/b32/f16"),
        (
            lambda: export_ggml(encode({"w": np.ones(33, np.float32)}, "int8/b32/f16")),
            "blocks of 32",
        ),
        (lambda: export_ggml(encode({"w": np.ones(32)}, "int8/b32/f16")), "'w' is f64"),
    ],
)
def test_settings_that_cannot_work_are_refused(call: Any, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        call()


@pytest.mark.parametrize(("kind", "expected"), [("Q8_0", 2.866e-5), ("Q4_0", 7.387e-3)])
def test_the_error_on_a_normal_vector_is_the_formats(kind: str, expected: float) -> None:
    values = np.random.default_rng(9).normal(size=2**20).astype(np.float32)
    data = quants.quantize(values, KINDS[kind]).tobytes()

    decoded = ggml_arrays({"w": GgmlTensor(data, values.shape, kind)})["w"]  # type: ignore[arg-type]

    error = np.sum((decoded - values).astype(float) ** 2) / np.sum(values.astype(float) ** 2)
    assert abs(error / expected - 1) < 0.01
