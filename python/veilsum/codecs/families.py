"""The codecs there are: one table of families, with the blocks, scales and options of each.

A codec's full name is its family, then what differs from the family's usual block and scale
format: "int8/b32/f16". Who reads such a name or an option asks here: encode(), plain rounds and
the settings of a run.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from veilsum import _native
from veilsum.codecs.transform import (
    ROTATION_BLOCKS,
    SCALE_BLOCKS,
    RingTransform,
    rotation_key,
)
from veilsum.errors import ConfigError

# A word of 1 bit has the steps 0 and -1 only, so nothing above 0. Beyond 25 bits steps are
# finer than an f32 at the clip.
RING_BITS = range(2, 65)
_RING = "ring"
_VARIANT_OPTIONS = ("block", "scales", "raw")


@dataclass(frozen=True, slots=True)
class CodecSettings:
    """A codec and its options as the native core takes them.

    Attributes:
        number: codec number of group 1.
        scale: steps per model unit; 0 for codecs without steps.
        limit: largest |value| accepted, model units; 0 for codecs without a limit.
        always_stochastic: whether to round stochastically without being given a seed.
        least_error: whether scales make the error of one update the smallest, instead of making
            the mean of many right.
        own_rotation: whether the update id decides how values are mixed, so that no two updates
            may have the same one.
        transform: what lies between values and steps of a ring codec, beyond one clip.
        clamps: whether a value beyond the limit is clamped instead of refused.
    """

    number: int
    scale: float = 0.0
    limit: float = 0.0
    always_stochastic: bool = False
    least_error: bool = False
    own_rotation: bool = False
    transform: RingTransform | None = None
    clamps: bool = False


Settle = Callable[[str, int, Mapping[str, Any]], CodecSettings]
"""Full name, codec number and options -> settings; ConfigError if an option cannot work."""


def _plainly(_name: str, number: int, _options: Mapping[str, Any]) -> CodecSettings:
    return CodecSettings(number)


@dataclass(frozen=True, slots=True)
class Family:
    """Codecs that differ in block, scale format and options only.

    Attributes:
        names: base names; more than one where a number is part of it.
        shown: how messages list them.
        blocks: coordinates that may share a scale, the usual number first; empty without scales.
        scales: formats that a scale may have, the usual one first; empty without scales.
        raw: whether codes may also go without scales.
        options: options beside those of every codec and `block`, `scales` and `raw`.
        settle: what the options come to.
    """

    names: tuple[str, ...]
    shown: str = ""
    blocks: tuple[int, ...] = ()
    scales: tuple[str, ...] = ()
    raw: bool = False
    options: tuple[str, ...] = ()
    settle: Settle = _plainly

    def known_options(self) -> tuple[str, ...]:
        """Every option that has to do with the codec."""
        variants = ("block", "scales") if self.blocks else ()
        return variants + (("raw",) if self.raw else ()) + self.options


# --- ring codecs --------------------------------------------------------------------


def ring_bits(codec: str) -> int | None:
    """Bits of a ring codec's words; None for other codecs."""
    digits = codec.removeprefix(_RING)
    return int(digits) if codec.startswith(_RING) and digits.isdecimal() else None


def ring_steps(bits: int) -> int:
    """The largest |step| that a ring codec of so many bits can have at its clip."""
    # From 31 bits on the sum of the largest step and a 24-bit uniform below 1 has more digits
    # than a double and may round up to the next whole step, which must exist too. From 55 bits
    # on the largest step is itself rounded: down to the next double.
    return (1 << (bits - 1)) - (1 if bits < 31 else max(2, 1 << (bits - 54) if bits > 54 else 2))


def ring_scale(steps: int, clip: float) -> float:
    """The largest number of steps per unit for which `clip` is at most `steps` steps."""
    scale = steps / clip
    while scale * clip > steps:  # the division may have rounded up
        scale = math.nextafter(scale, 0.0)
    return scale


def _settle_ring(name: str, number: int, options: Mapping[str, Any]) -> CodecSettings:
    most = ring_steps(ring_bits(name) or 0)
    steps = options.get("steps", most)
    if not isinstance(steps, int) or isinstance(steps, bool) or not 1 <= steps <= most:
        raise ConfigError(f"codec {name} has 1 to {most} steps, got {steps!r}")
    overrange = options.get("overrange", "refuse")
    if overrange not in ("refuse", "clip"):
        raise ConfigError(f"codec {name} has overrange 'refuse' or 'clip', got {overrange!r}")
    settings = _ring_settings(name, number, steps, options)
    return dataclasses.replace(settings, clamps=overrange == "clip")


def _ring_settings(name: str, number: int, steps: int, options: Mapping[str, Any]) -> CodecSettings:
    rotation = _rotation(name, options)
    if "scales" in options:
        transform = RingTransform(steps=steps, **rotation, **_clip_table(name, options))
        return CodecSettings(number, always_stochastic=True, transform=transform)
    clip = options.get("clip")
    if not isinstance(clip, int | float) or not 0.0 < clip < math.inf:
        raise ConfigError(
            f"codec {name} needs a positive, finite clip, got {clip!r}",
            hint="give clip=, the largest |value| of the update",
        )
    settings = CodecSettings(
        number, ring_scale(steps, float(clip)), float(clip), always_stochastic=True
    )
    if not rotation:
        return settings
    transform = RingTransform(steps=steps, **rotation)
    return dataclasses.replace(settings, limit=0.0, transform=transform)


def _rotation(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    block = options.get("hadamard", 0)
    if isinstance(block, bool) or block not in (0, *ROTATION_BLOCKS):
        raise ConfigError(
            f"codec {name} rotates {_either(ROTATION_BLOCKS)} coordinates, got {block!r}",
            hint="give hadamard=4096, or 0 for no rotation",
        )
    if not block:
        if "rotation_seed" in options:
            raise ConfigError("option 'rotation_seed' is of a rotation, and there is none")
        return {}
    key = rotation_key(options.get("rotation_seed", 0))
    return {"rotation_block": block, "rotation_key": key}


def _clip_table(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    kind, block = options["scales"], options.get("block", 0)
    if kind not in ("tensor", "block"):
        raise ConfigError(f"codec {name} has scales 'tensor' or 'block', got {kind!r}")
    if isinstance(block, bool) or block not in ((0,) if kind == "tensor" else SCALE_BLOCKS):
        raise ConfigError(
            f"codec {name} with scales={kind!r} cannot have block={block!r}",
            hint=f"give scales='block' and a block of {_either(SCALE_BLOCKS)} coordinates",
        )
    try:
        clips = np.array(options.get("clip"), np.float32).reshape(-1)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"codec {name} needs a table of clips: {error}") from error
    smallest = np.finfo(np.float32).tiny
    if not (np.isfinite(clips) & (clips >= smallest)).all():
        raise ConfigError(f"codec {name} needs positive, finite clips that f32 can hold")
    return {"clip_block": block, "clips": clips}


# --- topk -------------------------------------------------------------------------------

# Of how many coordinates one is kept, the usual number first.
SPARSITIES = (100, 2, 4, 10, 20, 50, 200, 1000)


def _settle_topk(name: str, number: int, options: Mapping[str, Any]) -> CodecSettings:
    chosen = [option for option in ("density", "values") if option in options]
    if chosen and "/" in name:
        raise ConfigError(
            f"codec {name} says what it keeps by name, and option {chosen[0]!r} again",
            hint="give either the full name or options",
        )
    sparsity = _sparsity(options.get("density", 1 / SPARSITIES[0]))
    values = options.get("values", "f32")
    if values not in ("f32", "f16"):
        raise ConfigError(f"codec {name} has values f32 or f16, got {values!r}")
    if not chosen:
        return CodecSettings(number)
    full = name + (f"/d{sparsity}" if sparsity != SPARSITIES[0] else "")
    return CodecSettings(_native.codec_number(full + ("/f16" if values == "f16" else "")))


def _sparsity(density: Any) -> int:
    if isinstance(density, int | float) and not isinstance(density, bool):
        for sparsity in SPARSITIES:
            if math.isclose(density, 1 / sparsity, rel_tol=1e-6):
                return sparsity
    known = ", ".join(f"{1 / sparsity:g}" for sparsity in sorted(SPARSITIES))
    raise ConfigError(f"codec topk has density {known}, got {density!r}")


# --- eden -------------------------------------------------------------------------------

EDEN_BITS = range(1, 5)
_VARIANTS = ("unbiased", "biased")


def _settle_eden(name: str, number: int, options: Mapping[str, Any]) -> CodecSettings:
    variant = options.get("variant", _VARIANTS[0])
    if variant not in _VARIANTS:
        raise ConfigError(f"codec {name} has variants {_either(_VARIANTS)}, got {variant!r}")
    return CodecSettings(number, least_error=variant == "biased", own_rotation=True)


# --- the table ------------------------------------------------------------------------

FAMILIES: tuple[Family, ...] = (
    Family(("f32",)),
    Family(("f16",)),
    Family(("bf16",)),
    Family(("int8",), blocks=(64, 32, 128, 256), scales=("f32", "f16")),
    Family(("int4",), blocks=(64, 32), scales=("f16", "f32")),
    Family(("nf4",), blocks=(64, 32), scales=("f16", "f32")),
    Family(("fp4",), blocks=(64, 32), scales=("f16", "f32")),
    Family(("fp8_e4m3",), blocks=(64, 32, 128, 256), scales=("f32", "f16"), raw=True),
    Family(("fp8_e5m2",), blocks=(64, 32, 128, 256), scales=("f32", "f16"), raw=True),
    Family(("sign",), blocks=(64, 128, 256, 512, 1024), scales=("f16", "f32")),
    Family(("topk",), options=("density", "values"), settle=_settle_topk),
    Family(
        tuple(f"eden{bits}" for bits in EDEN_BITS),
        shown=f"eden{EDEN_BITS[0]} to eden{EDEN_BITS[-1]}",
        options=("variant",),
        settle=_settle_eden,
    ),
    Family(
        tuple(f"{_RING}{bits}" for bits in RING_BITS),
        shown=f"{_RING}{RING_BITS[0]} to {_RING}{RING_BITS[-1]}",
        options=("clip", "steps", "overrange", "scales", "block", "hadamard", "rotation_seed"),
        settle=_settle_ring,
    ),
)


def codec_names() -> tuple[str, ...]:
    """The base name of every codec."""
    return tuple(name for family in FAMILIES for name in family.names)


def find_family(codec: str) -> Family:
    """The family of a codec, by its base or full name.

    Raises:
        ConfigError: there is none.
    """
    base = codec.partition("/")[0]
    for family in FAMILIES:
        if base in family.names:
            return family
    raise ConfigError(
        f"unknown codec {codec!r}",
        hint=f"use one of {', '.join(family.shown or family.names[0] for family in FAMILIES)}",
    )


def codec_settings(codec: str, options: Mapping[str, Any]) -> CodecSettings:
    """What a codec and those of its options that are given come to.

    Args:
        codec: a base name, or a full one.
        options: of find_family(codec).known_options().

    Raises:
        ConfigError: the codec or an option is unknown, or cannot work.
    """
    family = find_family(codec)
    name = _with_variant(codec, family, options)
    return family.settle(name, _native.codec_number(name), options)


def _with_variant(codec: str, family: Family, options: Mapping[str, Any]) -> str:
    """The full name of a codec whose variant may be given by options instead."""
    chosen = [option for option in _VARIANT_OPTIONS if option in options]
    if not chosen or not (family.blocks or family.scales):
        return codec
    if "/" in codec:
        raise ConfigError(
            f"codec {codec} says what option {chosen[0]!r} says again",
            hint="give either the full name or options",
        )
    if _raw(codec, options):
        return f"{codec}/raw"
    block = options.get("block", family.blocks[0])
    if isinstance(block, bool) or block not in family.blocks:
        raise ConfigError(f"codec {codec} has blocks of {_either(family.blocks)}, got {block!r}")
    scales = options.get("scales", family.scales[0])
    if scales not in family.scales:
        raise ConfigError(f"codec {codec} has scales {_either(family.scales)}, got {scales!r}")
    name = codec if block == family.blocks[0] else f"{codec}/b{block}"
    return name if scales == family.scales[0] else f"{name}/{scales}"


def _raw(codec: str, options: Mapping[str, Any]) -> bool:
    raw = options.get("raw", False)
    if not isinstance(raw, bool):
        raise ConfigError(f"option 'raw' of codec {codec} must be True or False, got {raw!r}")
    if raw and ("block" in options or "scales" in options):
        raise ConfigError(
            f"codec {codec} has neither block nor scales when raw",
            hint="leave out raw=True, or the others",
        )
    return raw


def _either(choices: tuple[Any, ...]) -> str:
    return " or ".join(map(str, sorted(choices)))
