"""The median of each coordinate as NumPy has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from veilsum.bench.contenders import Contender, Work

if TYPE_CHECKING:
    from veilsum.bench.rule import RulePayload


def _median(payload: RulePayload, threads: int) -> Work:
    def call() -> Mapping[str, Any]:
        return {"w": np.median(np.stack([update["w"] for update in payload.updates]), axis=0)}

    return Work(call, payload.check_median)


MEDIANS = (Contender("np.median", _median, host="numpy", memory=float("inf")),)
