"""The public transform of ring codecs: clips that differ along the model, and a rotation.

All of it is the same for every site of a round, so steps of different sites still add up.
Options of encode() that lead here:

    hadamard       64, 256, 1024 or 4096: rotates so many coordinates first; `clip` is then the
                   largest |rotated value|
    rotation_seed  public bytes or an integer from 0, by default 0
    scales         "tensor": clip is a table, name -> clip or one per floating-point tensor;
                   "block": one per `block` coordinates of group 1
    block          256, 1024 or 4096
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veilsum import _native
from veilsum.errors import ConfigError, DecodeError
from veilsum.model import ModelLayout

ROTATION_BLOCKS = (64, 256, 1024, 4096)
SCALE_BLOCKS = (256, 1024, 4096)
KEY_BYTES = 8

# Tags of the items in an update's options (docs/format.md).
_STEPS, _ROTATION, _CLIPS = 1, 2, 3
_ITEM = struct.Struct("<HI")


@dataclass(frozen=True, kw_only=True)
class RingTransform:
    """What lies between values and steps, beyond one clip for all.

    Attributes:
        steps: largest |step|: at the clip, or of a rotated value.
        rotation_block: coordinates that a rotation mixes; 0 for none.
        rotation_key: 8 public bytes.
        clip_block: coordinates that share a clip; 0 for one clip per floating-point tensor.
        clips: model units per `steps` steps, one per tensor or block; None for the same
            everywhere, which is then said elsewhere.
    """

    steps: int
    rotation_block: int = 0
    rotation_key: bytes = bytes(KEY_BYTES)
    clip_block: int = 0
    clips: NDArray[np.float32] | None = field(default=None, repr=False)

    def to_bytes(self) -> bytes:
        """The options of an update: items of LE16 tag, LE32 length and content, by tag."""
        items = [(_STEPS, struct.pack("<Q", self.steps))]
        if self.rotation_block:
            items.append((_ROTATION, struct.pack("<I", self.rotation_block) + self.rotation_key))
        if self.clips is not None:
            items.append((_CLIPS, struct.pack("<I", self.clip_block) + self.clips.tobytes()))
        return b"".join(_ITEM.pack(tag, len(content)) + content for tag, content in items)

    @classmethod
    def from_bytes(cls, data: bytes) -> RingTransform:
        """Parses to_bytes().

        Raises:
            DecodeError: they are no options, or written in another than the one way.
        """
        fields: dict[str, Any] = {}
        for tag, content in _items(data):
            _read_item(tag, content, fields)
        if "steps" not in fields:
            raise DecodeError("the update's options do not say the number of steps")
        transform = cls(**fields)
        if transform.to_bytes() != data:
            raise DecodeError("the update's options are not in canonical form")
        return transform

    def scales(self) -> NDArray[np.float64]:
        """Steps per model unit, one per clip: the most for which the clip is at most `steps`
        steps."""
        clips = np.asarray(self.clips, np.float64)
        scales = self.steps / clips
        too_many = scales * clips > self.steps  # the division may have rounded up
        return np.where(too_many, np.nextafter(scales, 0.0), scales)

    def native(self, layout: ModelLayout) -> _native.Transform:
        """For the native core.

        Raises:
            ConfigError: the layout has another number of tensors or blocks, or a clip is not
                positive and finite.
        """
        rotated = self.rotation_block != 0
        scales = limits = None
        if self.clips is not None:
            if not (np.isfinite(self.clips) & (self.clips > 0)).all():
                raise ConfigError("every clip must be positive and finite")
            scales = self.scales()
            limits = np.zeros(0) if rotated else self.clips.astype(np.float64)
        elif not rotated:
            raise ConfigError("a transform has a rotation or a table of clips, or both")
        return _native.Transform(
            layout.native,
            rotation_block=self.rotation_block,
            rotation_key=self.rotation_key,
            rotated_limit=float(self.steps) if rotated else 0.0,
            scale_block=self.clip_block,
            scales=scales,
            limits=limits,
        )


def rotation_key(seed: Any) -> bytes:
    """The public key of a rotation; see public_key()."""
    return public_key("rotation", seed)


def public_key(use: str, seed: Any) -> bytes:
    """A public key of 8 bytes for one use, from a seed that is no secret.

    Raises:
        ConfigError: the seed is neither bytes nor an integer from 0.
    """
    if isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < 2**256:
        seed = b"integer\0" + seed.to_bytes(32, "little")
    elif isinstance(seed, bytes):
        seed = b"bytes\0" + seed
    else:
        raise ConfigError(
            f"{use}_seed must be bytes or an integer from 0, got {type(seed).__name__}"
        )
    return hashlib.sha256(f"veilsum/{use}\0".encode() + seed).digest()[:KEY_BYTES]


# --- reading foreign options --------------------------------------------------------


def _items(data: bytes) -> Iterator[tuple[int, bytes]]:
    """In one pass, and no more items than there are tags: the bytes are foreign, and there may
    be as many as an update has."""
    begin, least = 0, 0
    while begin < len(data):
        if len(data) - begin < _ITEM.size:
            raise DecodeError("the update's options end within an item")
        tag, size = _ITEM.unpack_from(data, begin)
        if tag not in _READERS:
            raise DecodeError(f"option {tag} is unknown")
        if tag < least:
            raise DecodeError(f"option {tag} is there twice, or behind a later one")
        begin += _ITEM.size
        content = data[begin : begin + size]
        if len(content) != size:
            raise DecodeError(f"option {tag} has {len(content)} bytes of the {size} it announces")
        yield tag, content
        begin, least = begin + size, tag + 1


def _read_steps(content: bytes) -> dict[str, Any]:
    (steps,) = struct.unpack("<Q", content)
    if not 1 <= steps < 2**63:
        raise DecodeError(f"the largest step is {steps}, expected 1 to 2**63-1")
    return {"steps": steps}


def _read_rotation(content: bytes) -> dict[str, Any]:
    block, key = struct.unpack(f"<I{KEY_BYTES}s", content)
    if block not in ROTATION_BLOCKS:
        raise DecodeError(f"a rotation mixes 64, 256, 1024 or 4096 coordinates, not {block}")
    return {"rotation_block": block, "rotation_key": key}


def _read_clips(content: bytes) -> dict[str, Any]:
    (block,) = struct.unpack_from("<I", content)
    if block not in (0, *SCALE_BLOCKS):
        raise DecodeError(f"a clip is shared by 256, 1024 or 4096 coordinates, not {block}")
    clips = np.frombuffer(content[4:], "<f4")
    smallest = np.finfo(np.float32).tiny
    if not (np.isfinite(clips) & (clips >= smallest)).all():
        raise DecodeError("a clip is negative, 0, subnormal or not finite")
    return {"clip_block": block, "clips": clips}


_READERS: dict[int, Callable[[bytes], dict[str, Any]]] = {
    _STEPS: _read_steps,
    _ROTATION: _read_rotation,
    _CLIPS: _read_clips,
}


def _read_item(tag: int, content: bytes, fields: dict[str, Any]) -> None:
    try:
        fields.update(_READERS[tag](content))
    except (struct.error, ValueError) as error:
        if isinstance(error, DecodeError):
            raise
        raise DecodeError(f"option {tag} cannot have {len(content)} bytes") from error
