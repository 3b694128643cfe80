"""How much a site's contribution counts: NVFLARE's steps times weights of the job."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from nvflare.apis.dxo import MetaKey

from veilsum.arrays import plain_number
from veilsum.errors import ConfigError, PeerError
from veilsum.integrations.weights import whole_weight


@dataclass(frozen=True, slots=True)
class Weighing:
    """Settings of the weights.

    All weights of a round are multiplied by one number that makes whole ones of
    `aggregation_weights`, which leaves the mean as it is: 0.1 and 1 count like 1 and 10.

    Attributes:
        aggregation_weights: site -> a factor, positive; sites that are not in it have 1.
        weigh_by_local_iter: whether a site's NUM_STEPS_CURRENT_ROUND is the other factor.

    Raises:
        ConfigError: a factor is not a positive number.
    """

    aggregation_weights: Mapping[str, float] = field(default_factory=dict)
    weigh_by_local_iter: bool = True

    def __post_init__(self) -> None:
        for site, factor in self.aggregation_weights.items():
            number = isinstance(factor, int | float) and not isinstance(factor, bool)
            if not number or not 0 < factor < math.inf:
                raise ConfigError(
                    f"aggregation_weights has {factor!r} for {site!r}, expected a positive number",
                    hint="to leave a site out, do not send it the task",
                )

    def weight(self, site: str, meta: Mapping[str, Any]) -> int:
        """How much a contribution counts, 1 to 2**31-1.

        Args:
            meta: of its DXO or FLModel.

        Raises:
            PeerError: the site sent no steps, or their product is no such whole number.
        """
        factors = {site: _exactly(factor) for site, factor in self.aggregation_weights.items()}
        unit = math.lcm(*(factor.denominator for factor in factors.values()))
        factor = factors.get(site, Fraction(1)) * unit
        steps = self._steps(site, meta)
        return whole_weight(site, steps * int(factor), "steps times aggregation_weights")

    def _steps(self, site: str, meta: Mapping[str, Any]) -> int:
        if not self.weigh_by_local_iter:
            return 1
        steps = meta.get(MetaKey.NUM_STEPS_CURRENT_ROUND)
        if steps is None:
            raise PeerError(
                site,
                f"sent no {MetaKey.NUM_STEPS_CURRENT_ROUND}",
                hint="let clients put it in the model's meta, or count all alike with "
                "weigh_by_local_iter=False",
            )
        return whole_weight(site, plain_number(steps), MetaKey.NUM_STEPS_CURRENT_ROUND)


def _exactly(factor: float) -> Fraction:
    """The number as it is written: 0.1 is a tenth, not the nearest double."""
    return Fraction(str(factor))
