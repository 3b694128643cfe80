"""veilsum inside Flower: strategies for the server, a mod for the clients (docs/embedding.md).

The names below are imported when they are first used: a client needs no strategy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from veilsum.integrations.flower.legacy import LegacyFedAvg
    from veilsum.integrations.flower.mod import encode_mod
    from veilsum.integrations.flower.secure_fedavg import SecureFedAvg
    from veilsum.integrations.flower.secure_mod import secagg_mod
    from veilsum.integrations.flower.strategy import FedAvg
    from veilsum.integrations.rounds import RoundReport

# Public name -> the module that has it.
_WHERE = {
    "FedAvg": "veilsum.integrations.flower.strategy",
    "LegacyFedAvg": "veilsum.integrations.flower.legacy",
    "RoundReport": "veilsum.integrations.rounds",
    "SecureFedAvg": "veilsum.integrations.flower.secure_fedavg",
    "encode_mod": "veilsum.integrations.flower.mod",
    "secagg_mod": "veilsum.integrations.flower.secure_mod",
}

__all__ = [
    "FedAvg",
    "LegacyFedAvg",
    "RoundReport",
    "SecureFedAvg",
    "encode_mod",
    "secagg_mod",
]


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_WHERE[name]), name)
    globals()[name] = value  # the next access does not come here
    return value
