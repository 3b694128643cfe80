"""Subsampled updates: of every 64 blocks of 64 coordinates only some travel, by a public seed.

Options of encode() that lead here, for codecs whose codes do not depend on where they lie:

    subsample       the share that is kept, a multiple of 1/64 below 1
    subsample_seed  public bytes or an integer from 0; always needed
    rescale         True: kept values count for those that are not, so that the mean over seeds is
                    right; False: the others are 0, and the error of one update is smaller

A seed that is used round after round sends the same blocks every time. Derive it from the number
of the round, and use one for all sites: then the coordinates of a mean are whole or absent.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from veilsum import _native
from veilsum.codecs.transform import KEY_BYTES, RingTransform, public_key
from veilsum.errors import ConfigError, DecodeError

OPTIONS = ("subsample", "subsample_seed", "rescale")

_BLOCK, _TILE_BLOCKS = 64, 64
_TAG = 4
_ITEM = struct.Struct("<HI")
_CONTENT = struct.Struct(f"<BB{KEY_BYTES}s")


@dataclass(frozen=True, slots=True)
class Subsample:
    """Which blocks of group 1 travel.

    Attributes:
        keep: blocks kept of a tile's 64, 1 to 63.
        key: 8 public bytes.
        rescale: whether kept values count for those that are not.
    """

    keep: int
    key: bytes
    rescale: bool

    def to_bytes(self) -> bytes:
        """The options of an update: the one item of LE16 tag, LE32 length and content."""
        content = _CONTENT.pack(self.keep, self.rescale, self.key)
        return _ITEM.pack(_TAG, len(content)) + content

    def coded(self, size: int) -> int:
        """Coordinates that travel of a group of `size`."""
        tiles, rest = divmod(size // _BLOCK, _TILE_BLOCKS)
        return _BLOCK * (tiles * self.keep + -(-rest * self.keep // _TILE_BLOCKS))

    def native(self, codec: int) -> _native.Transform:
        """For the native core.

        Raises:
            ConfigError: the codec cannot be subsampled.
        """
        return _native.Transform.subsample(
            codec=codec, keep=self.keep, key=self.key, rescale=self.rescale
        )


def subsample_of(options: Mapping[str, Any]) -> Subsample | None:
    """What the options of encode() come to.

    Raises:
        ConfigError: an option cannot work.
    """
    if "subsample" not in options:
        for option in OPTIONS:
            if option in options:
                raise ConfigError(f"option {option!r} is of a subsample, and there is none")
        return None
    if "subsample_seed" not in options:
        raise ConfigError(
            "a subsample needs a subsample_seed",
            hint="give one that is public, the same for all sites and new in every round",
        )
    rescale = options.get("rescale", True)
    if not isinstance(rescale, bool):
        raise ConfigError(f"rescale must be True or False, got {rescale!r}")
    key = public_key("subsample", options["subsample_seed"])
    return Subsample(_keep(options["subsample"]), key, rescale)


def _keep(share: Any) -> int:
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
        raise ConfigError(f"subsample must be a share between 0 and 1, got {share!r}")
    blocks = share * _TILE_BLOCKS
    if blocks != math.floor(blocks):
        near = sorted({max(math.floor(blocks), 1), min(math.ceil(blocks), _TILE_BLOCKS - 1)})
        raise ConfigError(
            f"subsample must be a multiple of 1/64, got {share!r}",
            hint="give " + " or ".join(str(keep / _TILE_BLOCKS) for keep in near),
        )
    return int(blocks)


def parse_options(data: bytes) -> tuple[RingTransform | None, Subsample | None]:
    """The options of a foreign update.

    Raises:
        DecodeError: they are none, or written in another than the one way.
    """
    if not data:
        return None, None
    if data[:2] != struct.pack("<H", _TAG):
        return RingTransform.from_bytes(data), None
    if len(data) != _ITEM.size + _CONTENT.size or data[2:6] != struct.pack("<I", _CONTENT.size):
        raise DecodeError(
            f"a subsample is one option of {_CONTENT.size} bytes and goes with no other, these "
            f"options have {len(data)} bytes"
        )
    keep, rescale, key = _CONTENT.unpack_from(data, _ITEM.size)
    if not 1 <= keep < _TILE_BLOCKS or rescale > 1:
        raise DecodeError(
            f"a subsample keeps 1 to 63 blocks and rescales or not: {keep}, {rescale}"
        )
    return None, Subsample(keep, key, bool(rescale))
