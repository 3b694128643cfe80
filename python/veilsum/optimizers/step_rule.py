"""A server's step rule as bytes: which optimizer, and its settings to the last bit.

    "VSS1" || LP name || list of (LP parameter, f64), sorted by parameter

LP and list as in docs/protocol.md. Settings have one encoding, so two parties with the same bytes
make the same step of the same mean, model and state.
"""

from __future__ import annotations

import dataclasses
import struct

from veilsum.errors import ConfigError, DecodeError
from veilsum.optimizers.settings import OptimizerSettings, optimizer_settings

_MAGIC = b"VSS1"
_MAX_TEXT_BYTES = 64
_MAX_PARAMETERS = 16


def step_rule_bytes(settings: OptimizerSettings) -> bytes:
    """The settings in their one encoding."""
    parameters = dataclasses.asdict(settings)
    parts = [_MAGIC, _prefixed(settings.name), struct.pack("<H", len(parameters))]
    for name in sorted(parameters):
        parts += [_prefixed(name), struct.pack("<d", parameters[name])]
    return b"".join(parts)


def read_step_rule(data: bytes) -> OptimizerSettings:
    """Inverse of step_rule_bytes.

    Raises:
        DecodeError: not the one encoding of settings that this version knows.
    """
    if not data.startswith(_MAGIC):
        raise DecodeError("the step rule is not one of this version")
    try:
        name, at = _text(data, len(_MAGIC))
        (count,) = struct.unpack_from("<H", data, at)
        at += 2
        if count > _MAX_PARAMETERS:
            raise DecodeError(f"the step rule has {count} parameters")
        parameters = {}
        for _ in range(count):
            parameter, at = _text(data, at)
            (parameters[parameter],) = struct.unpack_from("<d", data, at)
            at += 8
        settings = _settings(name, parameters)
    except (struct.error, UnicodeDecodeError, ConfigError) as error:
        raise DecodeError(f"the step rule cannot be used: {error}") from error
    if step_rule_bytes(settings) != data:
        raise DecodeError("the step rule is not in canonical form")
    return settings


def _settings(name: str, parameters: dict[str, float]) -> OptimizerSettings:
    if "name" in parameters:  # no parameter, but an argument
        raise DecodeError("the step rule has no parameter 'name'")
    return optimizer_settings(name, **parameters)


def _prefixed(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<I", len(data)) + data


def _text(data: bytes, at: int) -> tuple[str, int]:
    (size,) = struct.unpack_from("<I", data, at)
    begin = at + 4
    if size > min(_MAX_TEXT_BYTES, len(data) - begin):
        raise DecodeError(f"a name of the step rule has {size} bytes")
    return data[begin : begin + size].decode(), begin + size
