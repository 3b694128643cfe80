"""From summed words of group 1 to values: centred, held against their range, rotated back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from veilsum import _native
from veilsum.errors import RoundAborted

_BLOCK = 2**20  # coordinates decoded at a time: bounds what decoding needs beside the result


@dataclass(slots=True, kw_only=True)
class StepSums:
    """The sums of one group of steps.

    Attributes:
        words: of the whole group.
        bits: of a word.
        limit: largest |sum| that honest updates can have.
        rotation_block: coordinates that the steps' rotation mixes; 0 for none.
        rotation_key: 8 public bytes.
        threads: to rotate with.
    """

    words: NDArray[Any] = field(repr=False)
    bits: int
    limit: int
    rotation_block: int
    rotation_key: bytes
    threads: int
    _unrotated: tuple[int, NDArray[np.float64]] | None = field(default=None, repr=False)

    def values(
        self, name: str, first: int, count: int, *, factor: float
    ) -> Iterator[tuple[slice, NDArray[np.float64]]]:
        """One tensor, piece by piece: places in it, and the double values there, which are
        `factor` model units per step of the sum.

        Tensors are best read in order: a rotated block is kept until another one is needed.

        Raises:
            RoundAborted: a sum is out of range.
        """
        done = 0
        while done < count:
            start = first + done
            # Blocks of a rotation lie on the grid of the group, whatever tensors lie on them.
            block = start - start % _BLOCK if self.rotation_block else start
            end = min(block + _BLOCK, first + count)
            values = self._rotated_back(block) if self.rotation_block else None
            if values is None:
                values = self._straight(name, slice(start, end), factor)
                yield slice(done, end - first), values
            else:
                yield slice(done, end - first), values[start - block : end - block] * factor
            done = end - first

    def _straight(self, name: str, place: slice, factor: float) -> NDArray[np.float64]:
        steps = _native.center_ring(self.words[place], self.bits)
        check_range(steps, self.limit, f"tensor {name!r}")
        return _native.decode_ring_sum(steps, factor=factor, count=steps.size)

    def _rotated_back(self, block: int) -> NDArray[np.float64]:
        """Gaps included: in the ring they hold rotated values like any other coordinate."""
        if self._unrotated is None or self._unrotated[0] != block:
            steps = _native.center_ring(self.words[block : block + _BLOCK], self.bits)
            check_range(steps, self.limit, "the rotated update")
            values = steps.astype(np.float64)
            _native.rotate(
                values,
                block=self.rotation_block,
                key=self.rotation_key,
                first=block,
                inverse=True,
                threads=self.threads,
            )
            self._unrotated = (block, values)
        return self._unrotated[1]


def check_range(sums: NDArray[np.int64], limit: int, what: str) -> None:
    """Raises:
    RoundAborted: a sum is beyond ±limit.
    """
    if sums.size and not -limit <= int(sums.min()) <= int(sums.max()) <= limit:
        trip(f"{what} is out of range")


def trip(what: str) -> NoReturn:
    """Raises:
    RoundAborted: always; honest updates cannot have this sum.
    """
    raise RoundAborted(
        f"the sum is not one that honest updates can have: {what}",
        hint="a mask did not cancel or a site sent words outside its range; nothing was published",
    )
