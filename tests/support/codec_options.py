"""What encode() must be given for each codec, so that a test can walk through all of them."""

from __future__ import annotations

from functools import cache
from typing import Any

from veilsum import _native
from veilsum.codecs.families import find_family
from veilsum.errors import ConfigError

# Codecs that a share of the blocks can travel in, one of each kind.
SUBSAMPLED = (
    *("f32", "f16", "bf16", "int8", "int8/b32/f16", "int4", "nf4", "fp4/f32"),
    *("fp8_e4m3", "fp8_e5m2/b32", "fp8_e4m3/raw", "ring5", "ring22"),
)


def required_options(codec: str, largest: float) -> dict[str, Any]:
    """Options for values of at most `largest`; a new codec with a required one gets a line here."""
    known = find_family(codec).known_options()
    return {"clip": largest} if "clip" in known else {}


def variants(codec: str) -> list[str]:
    """The full names of a codec: of every block and scale format, by number."""
    return [name for name in every_codec() if name.partition("/")[0] == codec]


@cache
def every_codec() -> list[str]:
    """Full names of all codecs of the native core, i64 included, by number."""
    families = [number for number in range(2**9) if _name(number) is not None]
    numbers = sorted(family | variant << 9 for family in families for variant in range(2**5))
    return [name for number in numbers if (name := _name(number)) is not None]


def _name(number: int) -> str | None:
    try:
        return _native.codec_name(number)
    except ConfigError:
        return None
