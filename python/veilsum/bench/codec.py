"""Decoding and summing encoded updates: every codec, and what others do with the same kind."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veilsum.aggregate import Aggregator
from veilsum.bench.contenders import OURS, Case, Contender, Part, Work
from veilsum.bench.options import BenchOptions
from veilsum.bench.peers import quantized
from veilsum.bench.reference import Reference
from veilsum.codecs import codecs, decode, encode
from veilsum.model import ModelLayout

SITES = 12
VALUES = 1 << 23
_SAMPLE = 1 << 16
# Widths of the ring that rounds use; they differ in width alone.
_RINGS = {"ring8", "ring16", "ring22", "ring32"}


@dataclass(frozen=True)
class CodecPayload:
    """Updates of one tensor, before they are encoded.

    Attributes:
        rows: the values of each site.
        weights: numbers of examples.
    """

    rows: Sequence[NDArray[np.float32]]
    weights: Sequence[int]

    @classmethod
    def of(cls, size: int, sites: int) -> CodecPayload:
        """Normal values, drawn once and moved by another place for each site."""
        values = np.random.default_rng(1).normal(size=size).astype(np.float32)
        rows = [np.roll(values, 64 * number) for number in range(sites)]
        return cls(rows, [100 + 37 * number for number in range(sites)])

    def ready(self, form: str) -> None:
        """There is one form."""

    def reference(self, decoded: Sequence[NDArray[Any]]) -> Reference:
        """Of what encoded updates stand for."""
        return Reference.of([{"w": values} for values in decoded], self.weights)


def cases(options: BenchOptions) -> list[Case]:
    """A case for each codec."""
    size, sites = max(4096, round(VALUES * options.scale)), options.sites or SITES
    return [_case(name, size, sites) for name in codecs() if _wanted(name)]


def _wanted(name: str) -> bool:
    return name in _RINGS or not re.fullmatch(r"ring\d+", name)


def _case(codec: str, size: int, sites: int) -> Case:
    sample = {"w": np.linspace(-1, 1, _SAMPLE, dtype=np.float32)}
    bits = 8 * sum(map(len, encode(sample, codec, **_options(codec)).body)) / _SAMPLE
    return Case(
        "codec",
        f"{codec}, {sites} x {size / 1e6:.3g} M values, {bits:.3g} bits each",
        (Contender(OURS, partial(_ours, codec), threads=True),),
        quantized.SUMS.get(codec, ()),
        partial(CodecPayload.of, size, sites),
        update_bytes=4 * size,
        payload_bytes=4 * size * sites,
        parts={"": Part(round(bits * size * sites / 8), size * sites)},
    )


def _options(codec: str) -> dict[str, Any]:
    return {"clip": 8.0} if codec.startswith("ring") else {}


def _ours(codec: str, payload: CodecPayload, threads: int) -> Work:
    layout = ModelLayout.from_arrays({"w": payload.rows[0]})
    updates = [
        encode({"w": row}, codec, layout=layout, seed=number, **_options(codec))
        for number, row in enumerate(payload.rows)
    ]
    reference = payload.reference([decode(update)["w"] for update in updates])

    def call() -> Mapping[str, Any]:
        mean = Aggregator(layout, threads=threads)
        for number, (update, weight) in enumerate(zip(updates, payload.weights, strict=True)):
            mean.add(update, weight=weight, site=f"site-{number}", copy=False)
        return mean.finish().arrays

    # What decode() gives is float32: rounded once more than what the sum is taken of.
    return Work(call, reference.rounded_once_before)
