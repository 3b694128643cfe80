"""veilsum inside NVFLARE: an aggregator for the server, a filter for sites (docs/embedding.md).

The names below are imported when they are first used: a site needs no aggregator.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from veilsum.integrations.nvflare.aggregator import VeilsumAggregator
    from veilsum.integrations.nvflare.encode_filter import EncodeFilter

# Public name -> the module that has it.
_WHERE = {
    "EncodeFilter": "veilsum.integrations.nvflare.encode_filter",
    "VeilsumAggregator": "veilsum.integrations.nvflare.aggregator",
}

__all__ = ["EncodeFilter", "VeilsumAggregator"]


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_WHERE[name]), name)
    globals()[name] = value  # the next access does not come here
    return value
