"""veilsum: exact, bounded and masked sums of model updates for federated learning.

The names below are imported when they are first used, so that `import veilsum` costs
neither gRPC nor any array framework. Start with examples/in_process_round.py.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from veilsum._version import __version__

if TYPE_CHECKING:
    from veilsum import errors, optimizers, privacy, rules, secagg
    from veilsum.aggregate import AggregateResult, Aggregator, SteppedModel, Streaming
    from veilsum.codecs import EncodedUpdate, ErrorFeedback, codecs, decode, encode
    from veilsum.devices import BackendInfo, backends
    from veilsum.errors import (
        ConfigError,
        DecodeError,
        DeviceError,
        PeerError,
        RoundAborted,
        VeilsumError,
    )
    from veilsum.model import ModelLayout

_ERRORS = (
    "ConfigError",
    "DecodeError",
    "DeviceError",
    "PeerError",
    "RoundAborted",
    "VeilsumError",
)

# Public name -> the module that has it; a module itself where both are the same.
_WHERE = {
    "AggregateResult": "veilsum.aggregate",
    "Aggregator": "veilsum.aggregate",
    "BackendInfo": "veilsum.devices",
    "EncodedUpdate": "veilsum.codecs",
    "ErrorFeedback": "veilsum.codecs",
    "ModelLayout": "veilsum.model",
    "SteppedModel": "veilsum.aggregate",
    "Streaming": "veilsum.aggregate",
    "backends": "veilsum.devices",
    "codecs": "veilsum",  # the module, which is also the function
    "decode": "veilsum.codecs",
    "encode": "veilsum.codecs",
    "errors": "veilsum",
    "optimizers": "veilsum",
    "privacy": "veilsum",
    "rules": "veilsum",
    "secagg": "veilsum",
    **dict.fromkeys(_ERRORS, "veilsum.errors"),
}

__all__ = [
    "AggregateResult",
    "Aggregator",
    "BackendInfo",
    "ConfigError",
    "DecodeError",
    "DeviceError",
    "EncodedUpdate",
    "ErrorFeedback",
    "ModelLayout",
    "PeerError",
    "RoundAborted",
    "SteppedModel",
    "Streaming",
    "VeilsumError",
    "__version__",
    "backends",
    "codecs",
    "decode",
    "encode",
    "errors",
    "optimizers",
    "privacy",
    "rules",
    "secagg",
]


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module 'veilsum' has no attribute {name!r}")
    if _WHERE[name] == "veilsum":
        return importlib.import_module(f"veilsum.{name}")
    value = getattr(importlib.import_module(_WHERE[name]), name)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
