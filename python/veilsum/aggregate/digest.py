"""A result's digest, made when somebody asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veilsum import _native
from veilsum.errors import ConfigError
from veilsum.model import ModelLayout, result_digest


class ResultDigest:
    """The digest of arrays as they are now, computed at the first call of hex().

    SHA-256 takes about as long as a mean of a few updates, and many callers never look at it. A
    checksum, an order of magnitude faster, is taken at once: arrays that have changed when the
    digest is wanted are refused instead of being named as if they were the result.

    Safe to ask from several threads: whoever comes first computes it, and two that come
    at the same time compute the same.
    """

    __slots__ = ("_arrays", "_checksum", "_layout", "_threads", "_value")

    def __init__(
        self, layout: ModelLayout, arrays: Mapping[str, NDArray[Any]], *, threads: int
    ) -> None:
        """Args are as of model.result_digest, and how many threads one call may use."""
        self._layout: ModelLayout | None = layout
        self._arrays = arrays
        self._threads = threads
        self._value = ""
        self._checksum = self._take_checksum(arrays)

    def hex(self) -> str:
        """See model.result_digest.

        Raises:
            ConfigError: the arrays have changed since.
        """
        layout = self._layout
        if self._value or layout is None:
            return self._value
        self._require_unchanged(layout)
        value = result_digest(layout, self._arrays)
        self._require_unchanged(layout)  # nor while it was computed
        self._value = value
        return value

    def __repr__(self) -> str:
        return repr(self._value) if self._value else "<not computed yet>"

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy has arrays of its own, which may change before anyone asks.
        return _known, (self.hex(),)

    def _take_checksum(self, arrays: Mapping[str, NDArray[Any]]) -> int:
        # As bytes: not every dtype is one that a buffer can describe.
        views = [
            np.ascontiguousarray(array).reshape(-1).view(np.uint8).data for array in arrays.values()
        ]
        return _native.checksum(views, threads=self._threads)

    def _require_unchanged(self, layout: ModelLayout) -> None:
        arrays = dict(self._arrays)
        if tuple(arrays) == tuple(layout.names) and self._take_checksum(arrays) == self._checksum:
            return
        raise ConfigError(
            "the arrays of this result were changed after finish(), so its digest can no longer "
            "be computed",
            hint="read `digest` before changing them, or change copies",
        )


def _known(value: str) -> ResultDigest:
    """A digest that was computed elsewhere."""
    digest = ResultDigest.__new__(ResultDigest)
    digest._layout, digest._arrays, digest._threads = None, {}, 1
    digest._value, digest._checksum = value, 0
    return digest
