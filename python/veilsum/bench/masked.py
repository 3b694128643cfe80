"""A masked round: what a site and the server compute, with both generators, beside Flower's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veilsum import secagg
from veilsum._native import Secret
from veilsum.bench.contenders import OURS, Case, Checked, Contender, Part, Work
from veilsum.bench.masked_sessions import Round
from veilsum.bench.options import BenchOptions
from veilsum.bench.peers import secaggplus
from veilsum.bench.reference import Reference
from veilsum.bench.sides import clock_of
from veilsum.control import MaskGenerator
from veilsum.secagg.keys import SECRET_BYTES

SITES = 12
VALUES = 1 << 22
WEIGHT = 100
GENERATORS: tuple[tuple[MaskGenerator, str], ...] = (
    ("chacha20", "ChaCha20"),
    ("aes256ctr", "AES-256-CTR"),
)
SITE, SERVER = "a site: encode and mask", "the server: sum and unmask"


@dataclass(frozen=True)
class MaskedPayload:
    """Updates of one tensor, between -1 and 1, which nobody has to clip.

    Attributes:
        rows: values of each site.
    """

    rows: Sequence[NDArray[np.float32]]

    @classmethod
    def of(cls, size: int, sites: int) -> MaskedPayload:
        """Uniform values."""
        values = np.random.default_rng(3)
        return cls([values.random(size, dtype=np.float32) * 2 - 1 for _ in range(sites)])

    def ready(self, form: str) -> None:
        """There is one form."""
        _ = self.mean

    @cached_property
    def mean(self) -> NDArray[np.float64]:
        """In float64; all weights are the same."""
        updates = [{"w": row} for row in self.rows]
        return Reference.of(updates, [WEIGHT] * len(updates)).mean["w"]

    def check(self, result: NDArray[Any], step: float) -> Checked:
        """In steps of the encoding: rounding at random moves each value by less than one."""
        if result.shape != self.mean.shape:
            return Checked(float("inf"), 1.0, "steps")
        return Checked(float(np.abs(result - self.mean).max()) / step, 1.0, "steps")


def cases(options: BenchOptions) -> list[Case]:
    """One: all parts are of the same rounds."""
    size, sites = max(4096, round(VALUES * options.scale)), options.sites or SITES
    values = 4 * size
    ours = tuple(
        Contender(f"{OURS}, {name}", partial(_ours, generator), memory=2.0 * sites, threads=True)
        for generator, name in GENERATORS
    )
    return [
        Case(
            "masked",
            f"{sites} x {size / 1e6:.3g} M values",
            ours,
            secaggplus.ROUNDS,
            partial(MaskedPayload.of, size, sites),
            update_bytes=values,
            payload_bytes=values * sites,
            parts={SITE: Part(values, size), SERVER: Part(values * sites, size * sites)},
        )
    ]


def _ours(generator: MaskGenerator, payload: MaskedPayload, threads: int) -> Work:
    updates = {
        f"site-{number:03}": secagg.Contribution(
            {"w": row}, WEIGHT, {}, Secret.from_bytes(number.to_bytes(SECRET_BYTES, "little"))
        )
        for number, row in enumerate(payload.rows)
    }

    def fresh() -> tuple[Round]:
        size = payload.rows[0].size
        timer = clock_of(threads)
        return (Round(updates, size, generator=generator, weight_cap=WEIGHT, timer=timer),)

    def call(made: Round) -> tuple[Round, secagg.SecureResult]:
        return made, made.run()

    def check(found: tuple[Round, secagg.SecureResult]) -> Checked:
        made, result = found
        return payload.check(result.arrays["w"], 1.0 / made.plan.scale)

    return Work(call, check, fresh=fresh, parts=_parts)


def _parts(found: tuple[Round, secagg.SecureResult]) -> Mapping[str, float]:
    """All that the server does after the keys: checks, sums, shares, masks, decoding."""
    made, _ = found
    sites = [clock.spent["masking"] for clock in made.of_site.values()]
    server = sum(made.clock.spent[phase] for phase in ("inputs", "votes", "unmask"))
    return {SITE: float(np.median(sites)), SERVER: server}
