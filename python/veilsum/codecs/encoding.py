"""encode() and decode(): a model's arrays to an EncodedUpdate and back."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray
from typing_extensions import Buffer

from veilsum import _native
from veilsum.codecs import zstd
from veilsum.codecs.families import CodecSettings, codec_names, codec_settings, find_family
from veilsum.codecs.form import UpdateForm, is_chunk_size
from veilsum.codecs.subsample import OPTIONS as SUBSAMPLE_OPTIONS
from veilsum.codecs.subsample import Subsample, subsample_of
from veilsum.codecs.update import EncodedUpdate
from veilsum.devices import available_threads
from veilsum.errors import ConfigError
from veilsum.model import ModelLayout, fit_arrays, zero_not_finite

DEFAULT_CHUNK_COORDINATES = 65_536

_COMMON_OPTIONS = (
    "chunk_coordinates",
    "update_id",
    "nonfinite",
    "compression",
    "level",
    *SUBSAMPLE_OPTIONS,
)


def codecs() -> tuple[str, ...]:
    """The codecs encode() knows. Integer tensors always travel exactly, as i64.

    f32, f16, bf16 round to the format. The next ones keep few bits per value and a scale per
    block of 64: int8 and int4 even steps, nf4 quantiles of the normal distribution, fp4,
    fp8_e4m3 and fp8_e5m2 small floats, sign nothing but the sign. topk keeps the largest values
    only, eden1 to eden4 so many bits per value of a rotated update. ring2 to ring64 round to
    steps of a fixed size, as masked rounds do.
    """
    return codec_names()


def encode(
    arrays: Mapping[str, Any],
    codec: str = "int8",
    *,
    layout: ModelLayout | None = None,
    seed: int | bytes | None = None,
    threads: int | None = None,
    **options: Any,
) -> EncodedUpdate:
    """Encodes a model's arrays.

    Args:
        arrays: name -> anything with __dlpack__ or __array_interface__.
        codec: one of codecs(), or the full name of a variant such as "int8/b32/f16".
        layout: what the update must look like; by default what the arrays look like.
        seed: of stochastic rounding, in int8, int4 and ring codecs, for one update only: it rounds
            the same values alike. Without it ring codecs take a fresh one, others round to nearest.
        threads: most threads to use; by default what devices.available_threads() says.
        **options: for codecs with a scale per block `block`, coordinates that share one, and
            `scales`, "f32" or "f16"; for 8-bit floats also `raw=True`, no scales. For topk
            `density`, the share kept (0.01), and `values` ("f32", "f16"). For eden codecs
            `variant`: "unbiased", for a right mean of many, or "biased", for the smallest error of
            one. For ring codecs `clip`, the largest |value| (required), `steps` up to it (as many
            as fit), `overrange` ("refuse", "clip") and those of codecs/transform.py. For every
            codec `chunk_coordinates` (65536); `update_id` (0; fresh for eden codecs, whose rotation
            it decides); `nonfinite`: "refuse", or "zero", which counts NaN and infinities in
            `zeroed`; `compression` ("zstd"), its `level` (1 to 19, 3); and codecs/subsample.py's.

    Raises:
        ConfigError: unknown codec or option, arrays that do not fit the layout, tensors that would
            share a block, values that are not finite, beyond the clip or too large for the codec.
    """
    _check_options(codec, options)
    layout = layout or ModelLayout.from_arrays(arrays)
    settings = codec_settings(codec, _with_table(layout, options))
    form = _form(codec, layout, settings, options)
    values, zeroed = _finite(fit_arrays(layout, arrays), layout, options.get("nonfinite", "refuse"))
    chunks = _native.encode_chunks(
        layout.native,
        values,
        codec=settings.number,
        scale=settings.scale,
        limit=settings.limit,
        rounding=_rounding(seed, settings),
        least_error=settings.least_error,
        plan_digest=form.plan_digest,
        update_id=form.update_id,
        chunk_coordinates=form.chunk_coordinates,
        threads=available_threads() if threads is None else threads,
        transform=form.native_transform,
        clip=settings.clamps,
    )
    return EncodedUpdate(form, chunks, compression_level=_compression_level(options), zeroed=zeroed)


def decode(
    update: EncodedUpdate | Buffer, *, threads: int | None = None
) -> dict[str, NDArray[Any]]:
    """Decodes an update, or the bytes of one.

    Args:
        update: what encode() made, or its bytes.
        threads: as encode() takes it.

    Returns:
        Name -> array, shapes and dtypes of the layout; bfloat16 tensors as float32.

    Raises:
        DecodeError: the bytes are not an update, or a value does not fit its tensor.
        ConfigError: `threads` is not 1 to 1024.
    """
    if not isinstance(update, EncodedUpdate):
        update = EncodedUpdate.from_bytes(update)
    form = update.form
    arrays = _native.decode_chunks(
        form.layout.native,
        update.body,
        codec=form.number,
        scale=form.scale,
        plan_digest=form.plan_digest,
        update_id=form.update_id,
        chunk_coordinates=form.chunk_coordinates,
        transform=form.native_transform,
        threads=available_threads() if threads is None else threads,
    )
    return dict(zip(form.layout.names, arrays, strict=True))


def _form(
    codec: str, layout: ModelLayout, settings: CodecSettings, options: Mapping[str, Any]
) -> UpdateForm:
    return UpdateForm(
        layout=layout,
        number=settings.number,
        scale=settings.scale,
        update_id=_update_id(options.get("update_id"), settings),
        chunk_coordinates=_chunk_coordinates(options),
        transform=settings.transform,
        subsample=_subsample(codec, settings, options),
    )


def _with_table(layout: ModelLayout, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Options whose clips, if they are given by name, are in the order of the tensors."""
    clips = options.get("clip")
    if not isinstance(clips, Mapping):
        return options
    names = [layout.names[number] for number, _, _ in layout.native.offsets(1)]
    if set(clips) != set(names):
        raise ConfigError(
            f"clips are given for {sorted(map(str, clips))}, the layout has the floating-point "
            f"tensors {sorted(names)}"
        )
    return {**options, "clip": [clips[name] for name in names]}


def _subsample(codec: str, settings: CodecSettings, options: Mapping[str, Any]) -> Subsample | None:
    subsample = subsample_of(options)
    if subsample is not None and settings.transform is not None:
        raise ConfigError(
            f"codec {codec} cannot be subsampled with a rotation or a table of clips: both go by "
            "where a coordinate lies in the model",
            hint="give one clip, and no hadamard",
        )
    return subsample


def _check_options(codec: str, options: Mapping[str, Any]) -> None:
    known = find_family(codec).known_options() + _COMMON_OPTIONS
    for option in options:
        if option not in known:
            raise ConfigError(
                f"codec {codec} has no option {option!r}", hint=f"it has {', '.join(known)}"
            )


def _finite(
    values: list[NDArray[Any]], layout: ModelLayout, nonfinite: Any
) -> tuple[list[NDArray[Any]], int]:
    """The values to encode, and how many of them were replaced."""
    if nonfinite == "zero":
        return zero_not_finite(layout, values)
    if nonfinite != "refuse":
        raise ConfigError(f"nonfinite must be 'refuse' or 'zero', got {nonfinite!r}")
    return values, 0  # the native core refuses the others


def _rounding(seed: int | bytes | None, settings: CodecSettings) -> _native.Secret | None:
    if seed is None:
        return _native.Secret.from_os(32) if settings.always_stochastic else None
    if isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < 2**256:
        seed = b"integer\0" + seed.to_bytes(32, "little")
    elif isinstance(seed, bytes):
        seed = b"bytes\0" + seed
    else:
        raise ConfigError(f"seed must be bytes or an integer from 0, got {type(seed).__name__}")
    return _native.Secret.from_bytes(hashlib.sha256(b"veilsum/rounding\0" + seed).digest())


def _update_id(number: Any, settings: CodecSettings) -> int:
    if number is None:
        return _fresh_update_id() if settings.own_rotation else 0
    if not isinstance(number, int) or not 0 <= number < 2**64:
        raise ConfigError(f"update_id must be 0 to 2**64-1, got {number!r}")
    return number


def _compression_level(options: Mapping[str, Any]) -> int | None:
    compression = options.get("compression")
    if compression not in (None, "zstd"):
        raise ConfigError(f"compression must be 'zstd' or None, got {compression!r}")
    level = options.get("level", zstd.DEFAULT_LEVEL)
    if isinstance(level, bool) or level not in zstd.LEVELS:
        raise ConfigError(
            f"level must be {zstd.LEVELS[0]} to {zstd.LEVELS[-1]}, got {level!r}",
        )
    if compression is None and "level" in options:
        raise ConfigError("option 'level' is of a compression, and there is none")
    return level if compression else None


def _fresh_update_id() -> int:
    # No secret: it travels in every chunk. From the operating system because two sites that
    # drew the same one would lose the same coordinates, and their mean would too.
    with memoryview(_native.Secret.from_os(8)) as view:
        return int.from_bytes(view, "little")


def _chunk_coordinates(options: Mapping[str, Any]) -> int:
    number = options.get("chunk_coordinates", DEFAULT_CHUNK_COORDINATES)
    if not isinstance(number, int) or not is_chunk_size(number):
        raise ConfigError(
            f"chunk_coordinates must be a multiple of 4096 up to 1048576, got {number!r}"
        )
    return number
