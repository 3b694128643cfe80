"""The table of codec families: full names, options, and that the native core agrees."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import veilsum
from veilsum import _native, encode, plain
from veilsum.codecs.families import FAMILIES, codec_settings
from veilsum.errors import ConfigError

VALUES = {"w": np.linspace(-1, 1, 300, dtype=np.float32)}
BLOCK_FAMILIES = [family for family in FAMILIES if family.blocks]
ALL_BLOCKS = (16, 32, 64, 128, 256, 512, 1024, 2048)


def full_name(base: str, block: int, scales: str, usual: tuple[int, str]) -> str:
    name = base if block == usual[0] else f"{base}/b{block}"
    return name if scales == usual[1] else f"{name}/{scales}"


@pytest.mark.parametrize("family", BLOCK_FAMILIES, ids=lambda family: family.names[0])
def test_the_native_core_knows_the_same_blocks_and_scales(family: Any) -> None:
    base = family.names[0]
    usual = (family.blocks[0], family.scales[0])
    for block, scales in itertools.product(ALL_BLOCKS, ("f32", "f16")):
        name = full_name(base, block, scales, usual)
        if block in family.blocks and scales in family.scales:
            assert _native.codec_name(_native.codec_number(name)) == name
        else:
            with pytest.raises(ConfigError, match="unknown codec"):
                _native.codec_number(name)


def test_the_usual_variant_has_the_short_name_only() -> None:
    for family in BLOCK_FAMILIES:
        for base in family.names:
            with pytest.raises(ConfigError, match="unknown codec"):
                codec_settings(f"{base}/b{family.blocks[0]}", {})
            usual = codec_settings(base, {"block": family.blocks[0], "scales": family.scales[0]})
            assert usual.number == _native.codec_number(base)


def test_options_and_full_names_mean_the_same_codec() -> None:
    for family in BLOCK_FAMILIES:
        base, usual = family.names[0], (family.blocks[0], family.scales[0])
        for block, scales in itertools.product(family.blocks, family.scales):
            name = full_name(base, block, scales, usual)
            by_options = codec_settings(base, {"block": block, "scales": scales})
            assert by_options == codec_settings(name, {})
            assert encode(VALUES, name).codec == name


def test_every_codec_that_is_listed_can_be_the_codec_of_a_plain_round() -> None:
    for name in veilsum.codecs():
        assert plain.codec_settings(name, 1.0).number == _native.codec_number(name)


@pytest.mark.parametrize(
    ("codec", "options", "reason"),
    [
        ("int8", {"blocks": 32}, "codec int8 has no option 'blocks'"),
        ("f32", {"block": 64}, "codec f32 has no option 'block'"),
        ("f32/b32", {}, "unknown codec"),
        ("int8/b48", {}, "unknown codec"),
        ("int8/", {}, "unknown codec"),
        ("ring8/b64", {"clip": 1.0}, "unknown codec"),
        ("int8", {"block": 48}, "codec int8 has blocks of 32 or 64 or 128 or 256, got 48"),
        ("int8", {"block": True}, "has blocks of"),
        ("int4", {"scales": "bf16"}, "codec int4 has scales f16 or f32, got 'bf16'"),
        ("int8/b32", {"block": 32}, "codec int8/b32 says what option 'block' says again"),
        ("int8", {"raw": True}, "codec int8 has no option 'raw'"),
        ("fp8_e4m3", {"raw": 1}, "must be True or False, got 1"),
        ("fp8_e4m3", {"raw": True, "block": 64}, "neither block nor scales when raw"),
    ],
)
def test_variants_that_do_not_exist_are_refused(
    codec: str, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        encode(VALUES, codec, **options)
